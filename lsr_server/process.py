"""The process of `lsr serve`: socket, bank, server and the limits of connections."""

import gc
import os
import socket
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import uvicorn

from lsr_onnx.errors import InputError
from lsr_onnx.runner import Runner
from lsr_server.application import RefuseAtStop, Service
from lsr_server.batches import BatchScheduler
from lsr_server.connections import ACCEPTED, OneLength, Protocol, Server
from lsr_server.limits import Awaited, Connections, Limits
from lsr_server.memory import BETWEEN, give_back, take_from_few_arenas

SWITCH = (
    0.0005  # seconds until a thread of Python lets others on, in place of .005, which each of many requests would wait
)
STOPPING = 30  # seconds for what was asked, after a signal
RESERVED = 128  # file descriptors besides admitted connections: rejected ones, uploads, and the process's own


def serve(options: Namespace, open_runner: Callable[[Namespace], Runner]) -> None:
    """Serve what `open_runner` opens, with the options of the command, until a signal stops it."""
    take_from_few_arenas()
    sys.setswitchinterval(SWITCH)
    connections = Connections(_limits(options))
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family) as listening:
        # An address that is taken is reported before the bank is read, which takes longer.
        _bind(listening, options.host, options.port)
        passes = open_runner(options)
        server = Server(_config(options, passes, connections))
        gc.collect()
        gc.freeze()  # a million objects stay; each full collection would visit them while requests wait
        listening.listen()  # connections that come from now on are answered
        _announce(options.host, listening, passes)
        server.run([listening])


def _limits(options: Namespace) -> Limits:
    """Return the limits of connections; print a line if the system allows fewer than the options ask for."""
    given = options.client_connections
    if given is not None and given > options.connections:
        raise InputError(f"--client-connections: needed: at most --connections, {options.connections}, got {given}")
    connections = _most_connections(options.connections)
    client_connections = min(given or max(1, connections // 2), connections)
    seconds = {
        Awaited.REQUEST: options.idle_seconds,
        Awaited.HEAD: options.head_seconds,
        Awaited.BODY: options.body_seconds,
        Awaited.READING: options.answer_seconds,
    }
    return Limits(connections, client_connections, options.held << 20, options.body_rate << 20, seconds)


def _most_connections(wanted: int) -> int:
    """Return the possible number of connections, at most the wanted one: each needs a file descriptor."""
    import resource  # not on Windows, which has the other commands all the same

    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY or files - RESERVED >= wanted:
        return wanted
    if files <= RESERVED:
        raise InputError(f"needed: more than {RESERVED} files that the process may open (ulimit -n), got {files}")
    connections = files - RESERVED
    reason = f"the process may open {files} files (ulimit -n)"
    print(f"--connections: {connections} in place of {wanted}, as {reason}", file=sys.stderr)
    return connections


def _bind(listening: socket.socket, host: str, port: int) -> None:
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OverflowError:
        raise InputError(f"--port: needed: 0 to 65535, got {port}") from None
    except socket.gaierror:
        raise InputError(f"--host: needed: an address of this machine, such as 127.0.0.1, got {host}") from None


def _config(
    options: Namespace,
    passes: Runner,
    connections: Connections,
) -> uvicorn.Config:
    batches = BatchScheduler(passes, options.max_batch_size, options.max_queue, options.max_wait_ms / 1000)
    service = Service(passes, batches, answers_by_group=options.answer_by_group)
    protocol: Any = partial(Protocol, connections)  # uvicorn calls it for each connection
    return uvicorn.Config(
        OneLength(RefuseAtStop(service.application())),
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


def _announce(
    host: str,
    listening: socket.socket,
    passes: Runner,
) -> None:
    adapters = len(passes.bank.names)
    port = listening.getsockname()[1]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    plural = "s" * (adapters != 1)
    changes = "enabled by LSR_TOKEN" if os.environ.get("LSR_TOKEN") else "disabled: LSR_TOKEN is not set"
    if not passes.can_change:
        changes = "disabled: graphs do not change"
    print(f"http://{address}: {adapters:,} adapter{plural}; PUT and DELETE are {changes}", file=sys.stderr)
