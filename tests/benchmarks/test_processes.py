import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
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


PARENT = """
import os, time
from pipeline.arena.workers import workers_of_this_program

if __name__ == "__main__":
    pool = workers_of_this_program(1)
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(600)
"""


def test_workers_start_with_a_program_and_end_with_it_when_it_is_killed(tmp_path):
    (tmp_path / "program").mkdir()
    (tmp_path / "program" / "__main__.py").write_text(PARENT, encoding="utf-8")  # as `python -m benchmarks.family`
    with subprocess.Popen(
        [sys.executable, "-m", "program"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{Path.cwd()}:{tmp_path}"},
    ) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
    for _ in range(600):
        if not is_running(worker):
            return
        time.sleep(0.1)
    pytest.fail("the worker is still there")


def is_running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
