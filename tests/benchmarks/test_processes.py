"""Peaks of memory are those of one call in a process of its own."""

import os
from functools import partial

import torch

from benchmarks.processes import in_fresh_process, peak_beyond

MB = 10**6


def hold(count):
    """Hold 64 MB, then so many times 64 MB."""
    torch.ones(16 * MB)
    return torch.ones(16 * MB * count).sum() and None


def test_the_peak_of_a_call_is_the_most_memory_that_it_held_at_once():
    _, peak = in_fresh_process(1, peak_beyond, partial(hold, 3))
    assert 180 * MB < peak < 245 * MB  # 192, and what a first product loads; not 256


def test_no_process_is_used_twice():
    assert len({in_fresh_process(1, os.getpid) for _ in range(3)}) == 3
