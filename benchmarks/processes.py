"""Measurements in separate processes, and their peak memory."""

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
    """Return the result of a call in its own process, so that the memory of the process is that of the call."""
    with process(threads, call.__module__) as worker:
        return worker.submit(call, *arguments).result()


def _prepare(threads: int) -> None:
    warnings.simplefilter("ignore", FutureWarning)  # PEFT's calls of transformers are not ours to change
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # exit silently at Ctrl-C


def peak_beyond(call: Callable[[], Result]) -> tuple[Result, int]:
    """Return the result of a call, and by how many bytes it raises the peak resident memory of this process.

    The kernel records the peak (`ru_maxrss`), so none is missed between samples, and it includes the allocations of all
    libraries, while tracemalloc sees only Python's objects. It is exact if the process has never been much larger than
    before the call, so use a fresh process, forked from the small fork server.
    """
    before = peak_memory()
    result = call()
    return result, peak_memory() - before


def peak_memory() -> int:
    """Return the peak resident memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_OF_MAXRSS
