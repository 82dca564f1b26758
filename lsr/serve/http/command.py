"""The command `lsr serve`: its arguments, and the packages that it needs."""

from argparse import ArgumentTypeError, Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lsr.tuner.mistakes import InputError

PACKAGES = ("starlette", "uvicorn", "python_multipart", "prometheus_client")  # of the extra, as they are imported


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
    "--max-batch-size": {**COUNT, "default": 64, "help": "maximum texts per batch (%(default)s)"},
    "--max-queue": {**COUNT, "default": 1024, "help": "maximum waiting texts; beyond it 429 (%(default)s)"},
    "--max-wait-ms": {**COUNT, "metavar": "MS", "default": 3, "help": "maximum time to fill a batch (%(default)s)"},
    "--max-length": {**COUNT, "default": 512, "help": "tokens of a text, or of prompt and completion (%(default)s)"},
    "--max-new-tokens": {**COUNT, "default": 256, "help": "of these, for the completion of a prompt (%(default)s)"},
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
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise InputError(
            f"needs {', '.join(missing)}; in a clone of lsr-adapt: pip install -c constraints.txt -e '.[server]'"
        )
    from lsr.serve.http.process import serve  # it imports them

    serve(options)
