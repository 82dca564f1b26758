"""Experiments of a list on a real cluster of Ray that loses a node: each is done once, and none is lost."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.helpers import ROOT, write

pytestmark = pytest.mark.nightly
RAY = "ray==2.60.0"
SCRIPTS = Path(sys.executable).parent
LINES = (1, 2, 3)
# An experiment notes that it has begun, waits for a file, and ends well.
STAGE = (
    "echo begun >> {0}/${{number}}; until [ -e {0}.go ]; do sleep 0.1; done; "
    "echo ${{number}} > out && echo ended >> {0}/${{number}}"
)
# Two nodes at a time: one is lost in the middle of a line, and another one comes.
CLUSTER = """
import os, subprocess, sys, time
from pathlib import Path
from ray.cluster_utils import Cluster

marks, *words = sys.argv[1:]
def wait_for(count):
    while sum(len(path.read_text().split()) for path in Path(marks).iterdir()) < count:
        assert typed.poll() is None
        time.sleep(0.1)

cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False})
lost = cluster.add_node()
os.environ["RAY_ADDRESS"] = cluster.address
typed = subprocess.Popen([sys.executable, *words])
wait_for(2)
cluster.remove_node(lost, allow_graceful=False)
cluster.add_node()
wait_for(3)
Path(marks + ".go").touch()
print("ended with", typed.wait())
print("again:", subprocess.call([sys.executable, *words]))
cluster.shutdown()
"""


def run(folder, *words, **environment):
    """Run a command in a folder; return what it prints."""
    variables = os.environ | environment
    variables["PATH"] = f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"
    for who in ("AUTHOR", "COMMITTER"):
        variables[f"GIT_{who}_NAME"] = "tests"
        variables[f"GIT_{who}_EMAIL"] = "tests"
    ended = subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


@pytest.fixture
def original(tmp_path):
    """A repository with one stage, to which experiments are pushed."""
    folder = tmp_path / "original"
    stage = {"params": ["number"], "outs": ["out"], "cmd": STAGE.format(tmp_path / "marks")}
    write(folder / "dvc.yaml", {"stages": {"line": stage}})
    write(folder / "params.yaml", {"number": 0})
    for words in ("git init -q", "dvc init -q", "git add --all", "git commit -qm First"):
        run(folder, *words.split())
    return folder


@pytest.fixture
def node(tmp_path):
    """The folder of this repository on each node, with a list."""
    folder = tmp_path / "node"
    (tmp_path / "marks").mkdir()
    (folder / ".venv").mkdir(parents=True)
    (folder / ".venv/bin").symlink_to(SCRIPTS)
    (folder / "examples").symlink_to(ROOT / "examples")
    write(folder / "jobs.txt", "".join(f"-S number={number}\n" for number in LINES))
    return folder


def test_lines_of_a_node_that_ray_loses_are_done_once_elsewhere(original, node, tmp_path):
    python = tmp_path / "ray/bin/python"
    run(tmp_path, sys.executable, "-m", "venv", "ray")
    install = [python, "-m", "pip", "install", "--quiet", RAY]
    if subprocess.run(install, capture_output=True, check=False).returncode:
        pytest.skip(f"no package index has {RAY}")
    words = [node / "examples/cluster/on_ray.py", original, "jobs.txt", node]
    with tempfile.TemporaryDirectory() as short:  # for names of sockets
        said = run(
            tmp_path,
            python,
            "-c",
            CLUSTER,
            tmp_path / "marks",
            *words,
            CPUS="1",
            RAY_TMPDIR=short,
            RAY_USAGE_STATS_ENABLED="0",
            DVC_CACHE=f"{original}/.dvc/cache",
        )
    assert "ended with 0" in said
    assert said.count(": done, ") == len(LINES)
    assert "again: 0" in said
    marks = sorted(path.read_text().split() for path in (tmp_path / "marks").iterdir())
    assert sorted(marks, key=len) == [["begun", "ended"]] * 2 + [["begun", "begun", "ended"]]
    experiments = run(original, "git", "for-each-ref", "refs/exps").splitlines()
    assert len(experiments) == len(LINES)
