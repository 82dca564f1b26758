"""Measurements in processes that do nothing else, and the memory that they take; and workers beside a program."""

import multiprocessing
import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")

BYTES_OF_MAXRSS = 1 if sys.platform == "darwin" else 1024


def process(threads: int, module: str) -> ProcessPoolExecutor:
    """Return one process, forked from a server that has imported a module and done nothing yet."""
    # numpy's BLAS and torch's read these when they are loaded.
    os.environ |= {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return ProcessPoolExecutor(1, context, initializer=_prepare, initargs=(threads,))


def in_fresh_process(threads: int, call: Callable[..., Result], *arguments: object) -> Result:
    """Return what a call returns in a process of its own, whose memory is then that of the call."""
    with process(threads, call.__module__) as worker:
        return worker.submit(call, *arguments).result()


def _prepare(threads: int) -> None:
    warnings.simplefilter("ignore", FutureWarning)  # how PEFT calls transformers is nothing to change here
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # gone at Ctrl-C without a word


def peak_beyond(call: Callable[[], Result]) -> tuple[Result, int]:
    """Return what a call returns, and by how many bytes it raises the highest resident memory of this process.

    The kernel keeps that mark (`ru_maxrss`), so no peak is missed between two samples, and it counts what every library
    allocates, while tracemalloc sees Python's objects only. It is exact where the process has never been much larger
    than it is before the call; so it is a young one, which was born with what the fork server has in memory.
    """
    before = peak_memory()
    result = call()
    return result, peak_memory() - before


def peak_memory() -> int:
    """Return the most bytes that this process has had in memory at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_OF_MAXRSS
