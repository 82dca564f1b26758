"""Workers of the arena end with their program."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
    (tmp_path / "program" / "__main__.py").write_text(PARENT, encoding="utf-8")
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
