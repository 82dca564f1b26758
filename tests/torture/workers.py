"""Cases side by side, each in a process and a folder of its own; who stops them stops all that they have started."""

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from random import Random
from typing import Any

from tests.torture.trials import Case, Result, run

CONTEXT = multiprocessing.get_context("spawn")
Work = tuple[Case, Collection[int]]  # with the numbers of the trials that are done


def results(works: Sequence[Work], seed: int, jobs: int) -> Iterator[Result]:
    """Yield what comes of the trials as they end, of `jobs` cases at once; one runs in this very process."""
    with tempfile.TemporaryDirectory(prefix="torture-", ignore_cleanup_errors=True) as folder:
        if jobs == 1:
            for work in works:
                yield from _run(work, folder, seed)
        else:
            yield from _side_by_side(works, folder, seed, jobs)


def _side_by_side(works: Sequence[Work], folder: str, seed: int, jobs: int) -> Iterator[Result]:
    waiting, workers = list(works), {}  # what a worker says, and which one it is
    try:
        while waiting or workers:
            while waiting and len(workers) < jobs:
                here, there = CONTEXT.Pipe(duplex=False)
                work = waiting.pop(0)
                worker = CONTEXT.Process(target=_work, args=(work, folder, seed, there))
                worker.start()
                there.close()
                workers[here] = work[0].name, worker
            for here in wait(list(workers)):
                try:
                    yield here.recv()
                except EOFError:
                    name, worker = workers.pop(here)
                    worker.join()
                    if worker.exitcode:
                        reason = f"{name}: the process of the case ended with {worker.exitcode}"
                        yield Result(name, None, 0.0, reason)
    finally:
        for _, worker in workers.values():
            with suppress(ProcessLookupError):  # it has just ended
                os.killpg(worker.pid, signal.SIGKILL)
            worker.join()


def _run(work: Work, folder: str, seed: int) -> Iterator[Result]:
    case, done = work
    path = Path(folder).resolve() / case.name
    path.mkdir()
    return run(case, path, Random(f"{seed} {case.name}"), done)


def _work(work: Work, folder: str, seed: int, said: Any) -> None:
    os.setpgid(0, 0)  # Ctrl-C reaches the first process alone, which ends this one with all that it has started
    os.environ["OMP_NUM_THREADS"] = "1"  # of what a trial starts: several cases share the cores
    for result in _run(work, folder, seed):
        said.send(result)
