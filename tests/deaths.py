"""Processes that die at one of their file operations, chosen by its number: nothing is cleaned up, as after SIGKILL.

A process dies before the operation; where torch or safetensors writes a file, also when half of it is written.
"""

import multiprocessing
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.workspace import ROOT

# Forked from a process of its own: one that has trained may hold threads and an accelerator, which no fork survives.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.stages.running"])  # what takes seconds to import
NEVER = 0
DEAD = 9  # exit status
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod"}
WRITING = os.O_WRONLY | os.O_RDWR


def operations(folder: Path, action: Callable[[], None]) -> list[str]:
    """Return what an action does to files in a folder, which is its working folder; the numbers begin with 1."""
    status, done = _run(folder, action, NEVER)
    assert status == 0, f"ended with {status}"
    return done


def die(folder: Path, action: Callable[[], None], at: int) -> None:
    """Run an action until its operation of a number."""
    status, done = _run(folder, action, at)
    assert status == DEAD, f"ended with {status} after {len(done)} operations"


def kinds(done: list[str]) -> dict[str, int]:
    """Return the operations that differ by more than numbers, with the number of the last one of each kind."""
    return {re.sub(r"\d+", "#", operation): number for number, operation in enumerate(done, start=1)}


def serve() -> None:
    """Have the process that others fork from; it must find the modules that it imports."""
    with patch.dict(os.environ, PYTHONPATH=str(ROOT)):
        forkserver.ensure_running()


def _run(folder: Path, action: Callable[[], None], at: int) -> tuple[int | None, list[str]]:
    serve()
    here, there = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_child, args=(folder, action, at, there))
    process.start()
    there.close()
    try:
        done = here.recv()
    except EOFError:
        done = []
    process.join()
    return process.exitcode, done


def _child(folder: Path, action: Callable[[], None], at: int, answer: Any) -> None:
    os.chdir(folder)
    counter = Counter(folder.resolve(), at)
    sys.addaudithook(counter.look)
    try:
        with counter.half_written():
            action()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    answer.send(counter.done)


class Counter:
    """Counts operations on what is in a folder, and dies at one."""

    def __init__(self, folder: Path, at: int) -> None:
        self.folder, self.at, self.done, self.is_paused = folder, at, [], False

    def count(self, operation: str) -> None:
        if not self.is_paused:
            self.done.append(operation)
            if len(self.done) == self.at:
                os._exit(DEAD)

    def look(self, event: str, details: tuple[Any, ...]) -> None:
        """Take an event that Python tells of."""
        if event == "open" and not isinstance(details[0], int) and details[2] & WRITING:
            self._count_inside(event, details[0])
        elif event in CHANGES and not Path(os.fsdecode(details[0])).is_absolute() and details[-1] not in {-1, None}:
            self.count(f"{event} {os.fsdecode(details[0])}")  # relative to an open folder: one of those removed
        elif event in CHANGES and os.path.lexists(details[0]) != (event == "os.mkdir"):
            self._count_inside(event, details[0])

    def _count_inside(self, event: str, path: Any) -> None:
        absolute = Path(os.fsdecode(path)).absolute()
        if absolute.is_relative_to(self.folder):
            self.count(f"{event} {absolute.relative_to(self.folder)}")

    @contextmanager
    def half_written(self) -> Iterator[None]:
        """Take what no event tells: fsync, and files of torch and safetensors, when half of each is there."""
        import safetensors.torch
        import torch

        save, serialize, sync = torch.save, safetensors.torch.serialize_file, os.fsync

        def save_in_halves(value: Any, path: Any, *rest: Any, **options: Any) -> None:
            save(value, path, *rest, **options)
            self._count_half(Path(path))

        def serialize_in_halves(tensors: Any, path: Any, *rest: Any, **options: Any) -> None:
            serialize(tensors, path, *rest, **options)
            self._count_half(Path(path))

        def counted_sync(descriptor: int) -> None:
            self.count("fsync")
            sync(descriptor)

        torch.save, safetensors.torch.serialize_file, os.fsync = save_in_halves, serialize_in_halves, counted_sync
        try:
            yield
        finally:
            torch.save, safetensors.torch.serialize_file, os.fsync = save, serialize, sync

    def _count_half(self, path: Path) -> None:
        self.is_paused, whole = True, path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        self.is_paused = False
        self.count(f"half {path}")
        self.is_paused = True
        path.write_bytes(whole)
        self.is_paused = False
