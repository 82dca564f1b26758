"""Processes that train beside a program and end with it."""

import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.process import BaseProcess
from threading import Thread


def workers_of_this_program(count: int) -> ProcessPoolExecutor:
    """Return processes that are silent at Ctrl-C and end when this program is killed: they would wait for ever."""
    # What they run first is in a module of this name, for they cannot import from a `__main__`.
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    Thread(target=_end_after, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_after(process: BaseProcess) -> None:
    process.join()
    os._exit(1)
