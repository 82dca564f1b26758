"""Each measurement of memory has a process of its own."""

import os

from benchmarks.processes import in_fresh_process


def test_no_process_is_used_twice():
    assert len({in_fresh_process(1, os.getpid) for _ in range(3)}) == 3
