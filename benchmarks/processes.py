"""Measurements in separate processes."""

import multiprocessing
import os
import signal
import warnings
from concurrent.futures import ProcessPoolExecutor

import torch


def process(threads: int, module: str) -> ProcessPoolExecutor:
    """Return one process, forked from a server that has imported a module and done nothing yet."""
    # numpy's BLAS and torch's read these when they are loaded.
    os.environ |= {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return ProcessPoolExecutor(1, context, initializer=_prepare, initargs=(threads,))


def _prepare(threads: int) -> None:
    warnings.simplefilter("ignore", FutureWarning)  # PEFT's calls of transformers are not ours to change
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # exit silently at Ctrl-C
