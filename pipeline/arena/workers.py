"""Worker processes that end with the program that started them."""

import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.process import BaseProcess
from threading import Thread

# oneDNN compiles a kernel for every shape and keeps 1,024: batches of any length and layers of any rank have more.
KERNELS = 8192


def workers_of_this_program(count: int) -> ProcessPoolExecutor:
    """Return worker processes that exit silently at Ctrl-C, and also when this program is killed."""
    # The initializer is in this module, because workers cannot import from a `__main__`.
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_end_with_parent)


def set_up_torch(threads: int) -> None:
    """Set what workers that start later read when they import torch; `threads` are those of each."""
    count = str(threads)
    os.environ |= {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "TOKENIZERS_PARALLELISM": "false"}
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS))


def _end_with_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    Thread(target=_end_after, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_after(process: BaseProcess) -> None:
    process.join()
    os._exit(1)
