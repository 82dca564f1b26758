"""Commands in processes of their own: how each ends, what it prints, and how much of the machine it takes."""

import fcntl
import os
import resource
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tests import deaths

PATIENCE = 600  # seconds; the slowest command takes a few, where nothing else runs
MOST_MEMORY = 3 * 2**30  # bytes; with torch and transformers loaded, half a gigabyte is taken already
MOST_PRINTED = 2**20  # bytes, to standard error
LONGEST_LINE = 700  # a message is at most 300 characters, and a path or two may stand before it
# What the actions are imported with, once: hypothesis and pandas, beside what all stages need.
deaths.CONTEXT.set_forkserver_preload(["tests.stages.running", "tests.mutations", "tests.repository", "lsr.__main__"])


class Ended(NamedTuple):
    """How a command has ended: its exit status, what it has printed to standard error, its most resident bytes."""

    status: int
    said: str
    memory: int


def ended(folder: Path, action: Callable[[], Any], largest: int | None = None) -> Ended:
    """Run an action in a folder, where no file may have more than `largest` bytes.

    Raises:
        AssertionError: if it does not end, and is killed.
    """
    deaths.serve()
    here, there = deaths.CONTEXT.Pipe(duplex=False)
    process = deaths.CONTEXT.Process(target=_child, args=(folder, action, largest, there))
    process.start()
    there.close()
    try:
        assert here.poll(PATIENCE), f"did not end in {PATIENCE} seconds"
        found: Ended = here.recv()
    except EOFError:
        raise AssertionError("the process died") from None
    finally:
        process.kill()
        process.join()
    return found


def check_plain(end: Ended, allowed: Iterable[int]) -> None:
    """Have an end be a good one, or one in plain and few lines."""
    assert end.status in allowed, f"exit status {end.status}: {end.said}"
    assert "Traceback" not in end.said, end.said
    assert end.memory < MOST_MEMORY, f"{end.memory:,} bytes in memory"
    if end.status:
        lines = end.said.splitlines()
        assert lines, "no word of why"
        assert all(len(line) <= LONGEST_LINE for line in lines), end.said


def _child(folder: Path, action: Callable[[], Any], largest: int | None, answer: Any) -> None:
    os.chdir(folder)
    sys.argv = ["command"]
    printed, end = os.pipe2(os.O_NONBLOCK)  # no file: its size is not limited
    fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, MOST_PRINTED)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(end, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    status = _status(action)
    sys.stderr.flush()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    os.write(end, b"\n")  # there is something to read
    answer.send(Ended(status, os.read(printed, MOST_PRINTED).decode(errors="replace").rstrip(), memory))
    os._exit(0)


def _status(action: Callable[[], Any]) -> int:
    try:
        return action() or 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
