"""The command `lsr serve`: its arguments, the packages that it needs, and how its mistakes are reported."""

import argparse
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from lsr_onnx.errors import InputError, format_rejection
from lsr_onnx.folder import GRAPHS, check_no_graphs
from lsr_onnx.runner import Runner

# Exit codes.
MISTAKE = 2
FAILED = 1
STOPPED = 130
SCRIPT = "lsr"
SERVE = "serve"
SUMMARY = "serve a bank over HTTP"
DESCRIPTION = (
    "Serve a bank over HTTP: each request names the adapter for its texts, and GET /openapi.json describes all "
    "requests. Adding and removing adapters needs the bearer token in the environment variable LSR_TOKEN; if it is "
    "unset, both are disabled."
)
TORCH = "torch"
# Import names of the packages of the extra `server`.
PACKAGES = ("starlette", "uvicorn", "python_multipart", "prometheus_client")


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text[:9]) > 0):
        raise ArgumentTypeError(f"needed: a whole number above 0, got {text[:100]!r}")
    return int(text[:9])


COUNT = {"type": _count, "metavar": "N"}
SECONDS = {"type": _count, "metavar": "S"}
ARGUMENTS: dict[str, dict[str, Any]] = {  # options of argparse's add_argument, by name
    "bank": {"metavar": "BANK", "type": Path, "help": "folder of the bank, from `lsr bank`, or of graphs"},
    "--base": {"metavar": "FOLDER_OR_HUB_ID", "help": "base model (default: the one that the adapters name)"},
    "--runtime": {
        "choices": (TORCH, *GRAPHS),
        "default": TORCH,
        "help": "torch for a bank, onnx and onnx-int8 for graphs from `lsr export --to onnx` (default: %(default)s)",
    },
    "--host": {"default": "127.0.0.1", "help": "address to listen on (default: %(default)s)"},
    "--port": {
        "type": int,
        "metavar": "N",
        "default": 8000,
        "help": "TCP port, 0 for any (default: %(default)s)",
    },
    "--max-batch-size": {**COUNT, "default": 64, "help": "maximum texts per batch (default: %(default)s)"},
    "--max-queue": {
        **COUNT,
        "default": 1024,
        "help": "maximum number of waiting texts; above it requests get 429 (default: %(default)s)",
    },
    "--max-wait-ms": {
        **COUNT,
        "metavar": "MS",
        "default": 3,
        "help": "maximum wait for a batch to fill, in milliseconds (default: %(default)s)",
    },
    "--max-length": {
        **COUNT,
        "default": 512,
        "help": "maximum tokens per text, or per prompt and completion together (default: %(default)s)",
    },
    "--max-new-tokens": {
        **COUNT,
        "default": 256,
        "help": "of these, the maximum for a completion (default: %(default)s)",
    },
    "--strict": {
        "action": "store_true",
        "help": "reject a text that is longer than the adapter reads (default: truncate it and count it in the answer)",
    },
    "--answer-by-group": {
        "action": "store_true",
        "help": "answer for a tenant that the bank does not have by the head rows of its group, if the request has its "
        "`labels` (default: 404)",
    },
    "--connections": {
        **COUNT,
        "default": 512,
        "help": "maximum open connections; one more closes the one idle for longest (default: %(default)s)",
    },
    "--client-connections": {
        **COUNT,
        "help": "maximum open connections per client address, such as a proxy's (default: half of --connections)",
    },
    "--head-seconds": {
        **SECONDS,
        "default": 10,
        "help": "seconds to receive the head of a request (default: %(default)s)",
    },
    "--body-seconds": {
        **SECONDS,
        "default": 60,
        "help": "seconds to receive the body of a request (default: %(default)s)",
    },
    "--answer-seconds": {
        **SECONDS,
        "default": 60,
        "help": "seconds for a client to read an answer (default: %(default)s)",
    },
    # Clients close connections that they leave idle: if the server did so first, it might lose a request.
    "--idle-seconds": {
        **SECONDS,
        "default": 75,
        "help": "seconds between two requests of a connection (default: %(default)s)",
    },
    "--held": {
        **COUNT,
        "metavar": "MIB",
        "default": 128,
        "help": "MiB of memory for unfinished bodies and unread answers; half of it per client address "
        "(default: %(default)s)",
    },
    "--body-rate": {
        **COUNT,
        "metavar": "MIB",
        "default": 16,
        "help": "MiB per second of request bodies above 64 KiB; half of it per client address (default: %(default)s)",
    },
}


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit."""
        line = format_rejection(f"{self.prog}: {message}; see {self.prog} --help")
        self.exit(MISTAKE, f"{line}\n")


def add_arguments(parser: argparse.ArgumentParser, arguments: dict[str, dict[str, Any]]) -> None:
    """Add arguments with options of argparse's add_argument, by their names or flags."""
    for flags, options in arguments.items():
        parser.add_argument(*flags.split(), **options)


def report(called: str, call: Callable[[], None]) -> int:
    """Call a command and return its exit code; its mistakes are lines that begin with what was called."""
    try:
        call()
    except InputError as error:
        return _print_failure(f"{called}: {error}", MISTAKE)
    except KeyboardInterrupt:
        return report_stop()
    except OSError as error:
        return _print_failure(format_rejection(f"{called}: {error}"), FAILED)
    return 0


def report_stop() -> int:
    """Print the line of a command that Ctrl-C has stopped, and return its exit code."""
    return _print_failure("stopped; no partial output was written", STOPPED)


def _print_failure(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code


def serve_graphs(options: Namespace) -> None:
    """Serve the graphs in a folder, without torch.

    Raises:
        InputError: as `run`.
    """
    from lsr_server.graphs import open_graphs

    run(options, open_graphs)


def run(options: Namespace, open_runner: Callable[[Namespace], Runner]) -> None:
    """Serve what `open_runner` opens until SIGTERM or SIGINT, then finish pending requests for up to 30 seconds.

    Raises:
        InputError: if a package is missing, or the folder has graphs, which torch cannot run; or as `open_runner`.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(
            f"needs {', '.join(missing)}; in a clone of lsr-adapt: pip install -c constraints.txt -e '.[server]'"
        )
    if options.runtime == TORCH:
        check_no_graphs(options.bank)
    from lsr_server.process import serve  # it imports them

    serve(options, open_runner)
