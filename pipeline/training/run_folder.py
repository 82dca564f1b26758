"""The run folders in .checkpoints: one per set of inputs, used by one process at a time, limited in number and age."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline import ranks
from pipeline.core import artifacts, console
from pipeline.training.checkpoints import Checkpoints

NAME = re.compile(r"([0-9a-f]{16})(\.lock)?")
LOCK = ".lock"
KEPT_RUNS = 8  # interrupted runs, which may be resumed
KEPT_DAYS = 30
SECONDS_BETWEEN_LOOKS = 0.5


@contextmanager
def held(folder: Path) -> Iterator[Checkpoints]:
    """Yield the checkpoints of a run, with exclusive access; if the run succeeds, they are removed.

    Another run with the same inputs waits until then, and trains on its own. Of the processes of one run, the first
    holds the folder for all.
    """
    if not ranks.is_first():
        ranks.wait()
        yield Checkpoints(folder)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = _wait(folder)
    try:
        _remove_abandoned(folder)
        checkpoints = Checkpoints(folder)
        artifacts.remove(checkpoints.aside)
        ranks.wait()
        try:
            with artifacts.name_path_on_error(checkpoints.aside):
                yield checkpoints
        except BaseException:
            artifacts.remove(checkpoints.aside)  # a full disk would stay full
            raise
        with _gate(folder):
            _remove(folder)
    finally:
        lock.release()


def _wait(folder: Path) -> FileLock:
    """Return the lock of a run once this process holds it."""
    is_told = False
    while True:
        with _gate(folder), suppress(Timeout):
            lock = _lock(folder)
            lock.acquire(timeout=0)
            return lock
        if not is_told:
            console.warn(f"train: waits for another process that trains with the same inputs, in {folder}")
            is_told = True
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _remove_abandoned(own: Path) -> None:
    """Remove runs that have not been resumed for long, and the oldest if there are too many."""
    with _gate(own):
        others = {name[1] for path in own.parent.iterdir() if (name := NAME.fullmatch(path.name))} - {own.name}
        ages = {own.with_name(name): _days_old(own.with_name(name)) for name in others}
        young = sorted((path for path in ages if ages[path] <= KEPT_DAYS), key=ages.__getitem__)[: KEPT_RUNS - 1]
        removed = [path for path in ages if path not in young and _is_removed(path)]
    if removed:
        console.line(f"train: removed {len(removed)} old interrupted runs from {own.parent}")


def _days_old(folder: Path) -> float:
    """Return the days since a run wrote its last checkpoint; infinity for a lock without a folder."""
    return (time.time() - folder.stat().st_mtime) / 86400 if folder.is_dir() else float("inf")


def _is_removed(folder: Path) -> bool:
    """Remove a run unless a process holds it; return whether there was anything to remove."""
    lock, is_there = _lock(folder), folder.is_dir()
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    _remove(folder)
    lock.release()
    return is_there


def _remove(folder: Path) -> None:
    """Remove a run that this process holds, and its lock."""
    artifacts.remove(folder)
    artifacts.remove(folder.with_suffix(LOCK))


def _lock(folder: Path) -> FileLock:
    return FileLock(folder.with_suffix(LOCK))


def _gate(folder: Path) -> FileLock:
    """Return the lock that is held while locks of runs are acquired or removed.

    Without it, a process could wait for a lock whose file has been removed, while another acquires a new one.
    """
    return FileLock(folder.with_name("lock"))
