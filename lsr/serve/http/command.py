"""The command `lsr serve`: its arguments, and the process that it starts."""

import os
import socket
import sys
from argparse import ArgumentTypeError, Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lsr.loading.base_models import load_tokenizer
from lsr.serve.bank import AdapterBank
from lsr.serve.passes import Passes
from lsr.tuner.mistakes import InputError

PACKAGES = ("starlette", "uvicorn", "python_multipart", "prometheus_client")  # of the extra, as they are imported
# Clients close connections that they leave idle: if the server did so first, it might lose a request.
SECONDS: dict[str, Any] = {"timeout_keep_alive": 75, "timeout_graceful_shutdown": 30}


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text[:9]) > 0):
        raise ArgumentTypeError(f"needed: a whole number above 0, got {text[:100]!r}")
    return int(text[:9])


COUNT = {"type": _count, "metavar": "N"}
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
}


def run(options: Namespace) -> None:
    """Serve a bank until a signal stops it; what was asked is answered, for at most 30 seconds."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise InputError(f"needs {', '.join(missing)}: pip install 'lsr-adapt[server]'")
    import uvicorn

    from lsr.serve.http.application import Service
    from lsr.serve.http.connections import Protocol

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
        address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
        changes = "enabled by LSR_TOKEN" if os.environ.get("LSR_TOKEN") else "disabled: LSR_TOKEN is not set"
        adapters = len(bank.notes)
        listening.listen()  # who comes from now on is answered
        print(f"{address}: {adapters:,} adapter{'s' * (adapters != 1)}; PUT and DELETE are {changes}", file=sys.stderr)
        uvicorn.Server(uvicorn.Config(app, http=Protocol, log_level="warning", **SECONDS)).run([listening])
