"""The job file for Ray by itself: which lines run, what is said of those that fail, and what runs again."""

import subprocess
import sys

import pytest

from tests.workspace import ROOT

# As much of Ray as the file uses, one task after another. The real one is no dependency: docs/how-to/cluster.md.
RAY = """
class exceptions:
    class RayError(Exception):
        pass

class Task:
    def __init__(self, function):
        self.function = function

    def options(self, num_cpus):
        print("cores", num_cpus)
        return self

    def remote(self, *words):
        return (self.function, words)

def remote(max_retries):
    return Task

def init():
    pass

def wait(waiting):
    return waiting[:1], waiting[1:]

def get(ready):
    function, words = ready
    if words[0] == 3:
        raise exceptions.RayError("the node was lost")
    return function(*words)
"""
JOB = """#!/usr/bin/env bash
echo "$1 $2 $3" >> ran
[ "$3" != 2 ] || [ -e mended ] || { echo "no such key"; exit 2; }
"""


@pytest.fixture
def on_ray(tmp_path):
    """A function that runs the file on a list of three lines; returns what has ended, and which lines have run."""
    folder = tmp_path / "folder"
    (folder / "examples/cluster").mkdir(parents=True)
    job = folder / "examples/cluster/job.sh"
    job.write_text(JOB)
    job.chmod(0o755)
    (folder / "jobs.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub/ray.py").write_text(RAY)

    def run():
        (folder / "ran").write_text("")
        command = [sys.executable, ROOT / "examples/cluster/on_ray.py", "repository", "jobs.txt", folder]
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path / "stub"), "CPUS": "2"}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return ended, (folder / "ran").read_text().splitlines(), folder

    return run


def test_what_failed_or_was_lost_is_said_and_runs_again_alone(on_ray):
    ended, ran, folder = on_ray()
    assert ended.returncode == 1
    assert ran == ["repository jobs.txt 1", "repository jobs.txt 2"]
    assert ended.stdout.splitlines() == ["cores 2", "jobs.txt: line 1: done, 2 to go"]
    assert ended.stderr.splitlines() == [
        "jobs.txt: line 2: exit status 2: no such key",
        "jobs.txt: line 3: exit status 1: the node was lost",
    ]
    (folder / "mended").touch()
    ended, ran, _ = on_ray()
    assert ran == ["repository jobs.txt 2"]
    assert (folder / "jobs.txt.ray").read_text().split() == ["1", "2"]
