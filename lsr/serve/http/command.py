"""The command `lsr serve`: its arguments, and the process that it starts."""

import gc
import os
import socket
import sys
from argparse import ArgumentTypeError, Namespace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lsr.loading.base_models import load_tokenizer
from lsr.serve.bank import AdapterBank
from lsr.serve.passes import Passes
from lsr.tuner.mistakes import InputError

PACKAGES = ("starlette", "uvicorn", "python_multipart", "prometheus_client")  # of the extra, as they are imported
STOPPING = 30  # seconds for what was asked, after a signal
RESERVED = 128  # files that are no admitted connections: those about to be refused, uploads, and the process's own


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text[:9]) > 0):
        raise ArgumentTypeError(f"needed: a whole number above 0, got {text[:100]!r}")
    return int(text[:9])


COUNT = {"type": _count, "metavar": "N"}
SECONDS = {"type": _count, "metavar": "S"}
ARGUMENTS: dict[str, dict[str, Any]] = {  # options of argparse's add_argument, by name
    "bank": {"metavar": "BANK", "type": Path, "help": "folder of a bank, from `lsr bank`"},
    "--base": {"metavar": "FOLDER_OR_HUB_ID", "help": "the base model, if not the one that the adapters name"},
    "--host": {"default": "127.0.0.1", "help": "(%(default)s)"},
    "--port": {"type": int, "metavar": "N", "default": 8000, "help": "0: one that is free (%(default)s)"},
    "--rows": {**COUNT, "default": 64, "help": "texts in a batch (%(default)s)"},
    "--queue": {**COUNT, "default": 1024, "help": "texts that wait; more are refused with 429 (%(default)s)"},
    "--wait": {**COUNT, "metavar": "MS", "default": 3, "help": "how long a batch is gathered (%(default)s)"},
    "--max-tokens": {**COUNT, "default": 512, "help": "of a text, if model and adapter take more (%(default)s)"},
    "--new-tokens": {**COUNT, "default": 256, "help": "of these, left for what is written at most (%(default)s)"},
    "--connections": {**COUNT, "default": 512, "help": "at most; one more has the longest idle closed (%(default)s)"},
    "--client-connections": {**COUNT, "help": "of one address, such as that of a proxy (half of --connections)"},
    "--head-seconds": {**SECONDS, "default": 10, "help": "for the head of a request (%(default)s)"},
    "--body-seconds": {**SECONDS, "default": 60, "help": "for the body of a request (%(default)s)"},
    "--answer-seconds": {**SECONDS, "default": 60, "help": "in which a client reads an answer (%(default)s)"},
    # Clients close connections that they leave idle: if the server did so first, it might lose a request.
    "--idle-seconds": {**SECONDS, "default": 75, "help": "between the requests of a connection (%(default)s)"},
    "--held": {
        **COUNT,
        "metavar": "MIB",
        "default": 128,
        "help": "of unfinished bodies and unread answers, of one address half of it (%(default)s)",
    },
}


def run(options: Namespace) -> None:
    """Serve a bank until a signal stops it; what was asked is answered, for at most 30 seconds."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise InputError(f"needs {', '.join(missing)}: pip install 'lsr-adapt[server]'")
    import uvicorn

    from lsr.serve.http.application import Service
    from lsr.serve.http.connections import ACCEPTED, OneLength, Protocol, Server
    from lsr.serve.http.limits import Awaited, Connections, Limits
    from lsr.serve.http.memory import BETWEEN, give_back, take_from_few_arenas

    take_from_few_arenas()
    connections, client_connections = _connections(options)
    seconds = {
        Awaited.HEAD: options.head_seconds,
        Awaited.BODY: options.body_seconds,
        Awaited.READING: options.answer_seconds,
    }
    limits = Limits(connections, client_connections, options.held << 20, seconds)
    protocol: Any = partial(Protocol, Connections(limits))  # uvicorn calls it for each connection
    host = options.host
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, options.port))  # before the bank is read, which takes longer
        except OverflowError:
            raise InputError(f"--port: needed: 0 to 65535, got {options.port}") from None
        bank = AdapterBank.load(options.base, options.bank)
        tokenizer = load_tokenizer(bank.base_fields, options.bank, options.base)
        if tokenizer is None:
            raise InputError(f"{options.bank}: the base model has no tokenizer")
        passes = Passes(bank, tokenizer, options.max_tokens, options.new_tokens)
        app = Service(passes, options.rows, options.queue, options.wait / 1000).application()
        config = uvicorn.Config(
            OneLength(app),
            http=protocol,
            ws="none",  # its connections would have no limits
            loop="asyncio",  # others accept as many connections at once as there are
            backlog=ACCEPTED,
            proxy_headers=False,  # clients are counted by the address that they come from: headers may hold any
            log_level="warning",
            timeout_keep_alive=options.idle_seconds,
            timeout_graceful_shutdown=STOPPING,
            timeout_notify=BETWEEN,
            callback_notify=give_back,
        )
        address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
        changes = "enabled by LSR_TOKEN" if os.environ.get("LSR_TOKEN") else "disabled: LSR_TOKEN is not set"
        adapters = len(bank.notes)
        gc.collect()
        gc.freeze()  # of a million objects that stay, which each full collection would look at while requests wait
        listening.listen()  # who comes from now on is answered
        print(f"{address}: {adapters:,} adapter{'s' * (adapters != 1)}; PUT and DELETE are {changes}", file=sys.stderr)
        Server(config).run([listening])


def _connections(options: Namespace) -> tuple[int, int]:
    """Return how many connections there may be at once, and how many of one client; say so if fewer than asked for."""
    given = options.client_connections
    if given is not None and given > options.connections:
        raise InputError(f"--client-connections: needed: at most --connections, {options.connections}, got {given}")
    import resource  # not on Windows, which has the other commands all the same

    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    connections = options.connections
    if files != resource.RLIM_INFINITY:
        connections = min(connections, files - RESERVED)
    if connections < 1:
        raise InputError(f"needed: more than {RESERVED} files that the process may open (ulimit -n), got {files}")
    if connections < options.connections:
        reason = f"the process may open {files} files (ulimit -n)"
        print(f"--connections: {connections} in place of {options.connections}, as {reason}", file=sys.stderr)
    return connections, min(given or max(1, connections // 2), connections)
