"""Detect the accelerator and the load of the cores; no other code does."""

import os
from collections.abc import Callable

import torch


def fastest() -> torch.device:
    """Return the accelerator, or the CPU if there is none."""
    if torch.accelerator.is_available():
        accelerator = torch.accelerator.current_accelerator()
        if accelerator is not None:
            return accelerator
    return torch.device("cpu")


def advise_on_threads(say: Callable[[str], None]) -> None:
    """Print a line by `say` if other programs keep the cores busy, which makes threads of torch wait for each other."""
    threads = torch.get_num_threads()
    if threads == 1 or fastest().type != "cpu" or not hasattr(os, "getloadavg"):  # Windows lacks getloadavg
        return
    cores = os.cpu_count() or 1
    load, *_ = os.getloadavg()
    if load > cores + 1:  # earlier runs of the pipeline alone load all cores
        busy = f"this machine has a load of {load:.0f} on {cores} cores, where {threads} threads wait for each other"
        say(f"{busy}: one may be faster; to try it, set OMP_NUM_THREADS=1 before the command")
