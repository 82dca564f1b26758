import os
from functools import partial

import torch

from benchmarks.processes import in_fresh_process, peak_beyond

MB = 10**6


def hold(count):
    """Hold 16 MB, then so many times 16 MB."""
    torch.ones(4 * MB)
    return torch.ones(4 * MB * count).sum() and None


def test_the_peak_of_a_call_is_the_most_memory_that_it_held_at_once():
    _, peak = in_fresh_process(1, peak_beyond, partial(hold, 3))
    assert 40 * MB < peak < 60 * MB  # 48 and what importing this module has held for a moment, or the first sum holds


def test_no_process_is_used_twice():
    assert len({in_fresh_process(1, os.getpid) for _ in range(3)}) == 3
