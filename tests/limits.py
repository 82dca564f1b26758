"""Commands on a machine that takes little: no file above a size, standard streams that are full or closed."""

import os
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.deaths import CONTEXT, serve


class Ended(NamedTuple):
    """How a process has ended, and what it has printed."""

    code: int | None
    out: str
    err: str


def run(folder: Path, action: Callable[[], None], largest: int = -1, **streams: str) -> Ended:
    """Run an action in a process of its own whose files have at most `largest` bytes; -1 for any.

    `streams` say where stdin, stdout and stderr go: a path such as /dev/full, or "closed".
    """
    serve()
    with tempfile.TemporaryDirectory() as printed:
        paths = {"stdout": f"{printed}/out", "stderr": f"{printed}/err", **streams}
        process = CONTEXT.Process(target=_child, args=(folder, action, largest, paths))
        process.start()
        process.join()
        out, err = (Path(printed, name) for name in ("out", "err"))
        said = (path.read_text(encoding="utf-8") if path.exists() else "" for path in (out, err))
        return Ended(process.exitcode, *said)


def _child(folder: Path, action: Callable[[], None], largest: int, streams: dict[str, str]) -> None:
    os.chdir(folder)
    sys.argv = ["command"]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if (path := streams.get(name)) is not None:
            _redirect(number, name, path)
    if largest >= 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    action()


def _redirect(number: int, name: str, path: str) -> None:
    """Have a stream go elsewhere, as Python finds it when it begins."""
    os.close(number)
    if path == "closed":
        setattr(sys, name, None)
        return
    flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
    if (opened := os.open(path, flags)) != number:  # one before it is closed
        os.dup2(opened, number)
        os.close(opened)
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
    setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", encoding=encoding, closefd=False))
