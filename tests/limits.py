"""Commands on a machine that takes no file above a size."""

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


def run(folder: Path, action: Callable[[], None], largest: int) -> Ended:
    """Run an action in a process of its own whose files have at most `largest` bytes."""
    serve()
    with tempfile.TemporaryDirectory() as printed:
        paths = [Path(printed, name) for name in ("out", "err")]
        process = CONTEXT.Process(target=_child, args=(folder, action, largest, paths))
        process.start()
        process.join()
        return Ended(process.exitcode, *(path.read_text(encoding="utf-8") for path in paths))


def _child(folder: Path, action: Callable[[], None], largest: int, paths: list[Path]) -> None:
    os.chdir(folder)
    sys.argv = ["command"]
    for number, path in enumerate(paths, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    action()
