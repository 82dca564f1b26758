"""Experiments in clones side by side, on a real cluster of Ray that loses a node, and on hosts that SSH reaches."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from pipeline.arena import preset, record
from tests import workspace
from tests.kit import write
from tests.pipeline.arena.small import SMALL
from tests.repository import IDENTITY, SCRIPTS, command, make, share

pytestmark = pytest.mark.nightly
SSHD = shutil.which("sshd", path=f"/usr/sbin{os.pathsep}{os.environ['PATH']}")
RAY = "ray==2.60.0"
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
Path(marks + ".go").write_text("1 2 3")
print("ended with", typed.wait())
print("again:", subprocess.call([sys.executable, *words]))
cluster.shutdown()
"""


@pytest.fixture
def node(tmp_path):
    """The folder of this repository on each node, with a list; experiments arrive in the repository beside it."""
    folder = tmp_path / "node"
    original = tmp_path / "original"
    line = Path(__file__).with_name("line.yaml").read_text(encoding="utf-8")
    write(original / "dvc.yaml", line.format(tmp_path / "marks"))
    write(original / "params.yaml", {"number": 0})
    for words in ("git init -q", "dvc init -q", "git add --all", "git commit -qm First"):
        command(original, *words.split())
    (tmp_path / "marks").mkdir()
    (folder / ".venv").mkdir(parents=True)
    (folder / ".venv/bin").symlink_to(SCRIPTS)
    (folder / "examples").symlink_to(workspace.ROOT / "examples")
    write(folder / "jobs.txt", "".join(f"-S number={number}\n" for number in (1, 2, 3)))
    return folder


def marks(node):
    return {path.name: path.read_text().split() for path in sorted((node.parent / "marks").iterdir())}


def arrived(node):
    """How many experiments have."""
    return len(command(node.parent / "original", "git", "for-each-ref", "refs/exps").splitlines())


def test_lines_of_a_node_that_ray_loses_are_done_once_elsewhere(node, tmp_path):
    python = tmp_path / "ray/bin/python"
    command(tmp_path, sys.executable, "-m", "venv", "ray")
    install = [python, "-m", "pip", "install", "--quiet", RAY]
    if subprocess.run(install, capture_output=True, check=False).returncode:
        pytest.skip(f"no package index has {RAY}")
    original = tmp_path / "original"
    words = [node / "examples/cluster/on_ray.py", original, "jobs.txt", node]
    with tempfile.TemporaryDirectory() as short:  # for names of sockets
        own = {"CPUS": "1", "RAY_TMPDIR": short, "RAY_USAGE_STATS_ENABLED": "0", "DVC_CACHE": f"{original}/.dvc/cache"}
        said = command(tmp_path, python, "-c", CLUSTER, tmp_path / "marks", *words, **own)
    assert "ended with 0" in said
    assert said.count(": done, ") == 3
    assert "again: 0" in said
    assert sorted(marks(node).values(), key=len) == [["begun", "ended"]] * 2 + [["begun", "begun", "ended"]]
    assert sorted((node / "jobs.txt.ray").read_text().split()) == ["1", "2", "3"]
    assert arrived(node) == 3


@pytest.fixture
def hosts(tmp_path, monkeypatch):
    """A file with two names, at each of which a server answers with a key of its own."""
    if not (SSHD and shutil.which("ssh") and shutil.which("parallel")):
        pytest.skip("OpenSSH's server or GNU parallel is not installed")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # which the server of root wants to be there
    environment = {"DVC_CACHE": tmp_path / "original/.dvc/cache", "PYTHONPATH": workspace.ROOT} | IDENTITY
    given = " ".join(f"{name}={value}" for name, value in environment.items())
    options = (f"SetEnv={given}", f"AuthorizedKeysFile={tmp_path}/user.pub", "StrictModes=no", "UsePAM=no")
    with ExitStack() as servers:
        names = []
        for key in ("user", "one", "two"):
            command(tmp_path, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
        for key in ("one", "two"):
            with socket.create_server(("127.0.0.1", 0)) as free:
                names.append("{}:{}".format(*free.getsockname()))
            own = (f"ListenAddress={names[-1]}", f"HostKey={tmp_path}/{key}", "PidFile=none", *options)
            server = subprocess.Popen([SSHD, "-D", "-f", "/dev/null", *(f"-o{option}" for option in own)])
            servers.callback(server.terminate)
            asked = ["ssh-keyscan", "-p", names[-1].partition(":")[2], "127.0.0.1"]
            while not subprocess.run(asked, capture_output=True, check=False).stdout:
                assert server.poll() is None, "the server has ended"
        known = f"-o StrictHostKeyChecking=no -o UserKnownHostsFile={tmp_path}/known"
        monkeypatch.setenv("PARALLEL_SSH", f"ssh -i {tmp_path}/user {known}")
        yield write(tmp_path / "hosts", "\n".join(names) + "\n")


def test_lines_spread_over_hosts_and_what_failed_alone_runs_again(node, hosts, tmp_path):
    def type_it(code):
        command(node, "examples/cluster/ssh.sh", tmp_path / "original", "jobs.txt", hosts, node, code=code)
        return marks(node)

    (tmp_path / "marks.go").write_text("1 3")
    done = ["begun", "ended"]
    failed = ["begun"]
    assert type_it(code=1) == {"1": done, "2": failed, "3": done}
    _, *log = (node / "jobs.txt.log").read_text().splitlines()
    assert {line.split("\t")[1] for line in log} == set(hosts.read_text().split())
    (tmp_path / "marks.go").write_text("1 2 3")
    for _ in range(2):
        assert type_it(code=0) == {"1": done, "2": failed + done, "3": done}
    assert arrived(node) == 3


def test_records_of_a_preset_that_hosts_share_are_those_of_one_machine(hosts, tmp_path):
    folder = tmp_path / "repository"
    for name in ("lsr", "lsr_onnx", "lsr_server", "pipeline"):
        shutil.copytree(workspace.ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    workspace.make(folder)
    methods = {name: SMALL["methods"][name] for name in ("head", "LoRA r=1")}
    write(folder / preset.PATH, {"small": SMALL | {"methods": methods}})
    for words in ("git init -q", "git add --all", "git commit -qm First"):
        command(folder, *words.split())
    job = f"JOBS=1 PATH={SCRIPTS}:$PATH {workspace.ROOT}/examples/cluster/arena.sh {folder} {tmp_path}/records small"
    command(tmp_path, "parallel", "--sshloginfile", hosts, "--jobs", "1", job, ":::", "glue:", "ratings:")
    command(folder, sys.executable, "-m", "pipeline.arena", "small", "--jobs", "1", PYTHONPATH="")
    whole, shared = (
        {key: one.model_dump(exclude={"seconds", "made"}) for key, one in record.read(at).items()}
        for at in (folder / record.FOLDER / "small", tmp_path / "records")
    )
    assert len(list((tmp_path / "records").glob("*.jsonl"))) == 2
    assert len(whole) > 10
    assert shared == whole
    labels = record.FOLDER / "small/labels/glue.csv"
    assert (tmp_path / "records/small-labels/glue.csv").read_bytes() == (folder / labels).read_bytes()


JOB = workspace.ROOT / "examples/cluster/job.sh"
METRICS = "reports/evaluate/metrics.json"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return make(tmp_path_factory.mktemp("repository"))


@pytest.mark.parametrize("cache", [False, True], ids=["a remote", "a shared cache"])
def test_jobs_each_in_a_clone_of_its_own_all_arrive(repository, tmp_path, cache):
    original = tmp_path / "original"
    seeds = ("21", "22", "23")
    command(tmp_path, "git", "clone", "--quiet", str(repository), str(original))
    command(original, "git", "remote", "remove", "origin")
    command(original, "dvc", "cache", "dir", "--local", str(repository / ".dvc/cache"))
    bare = tmp_path / "bare.git"
    share(original, tmp_path / "remote", bare)
    jobs = tmp_path / "jobs.txt"
    jobs.write_text("".join(f"--name job-{seed} -S seed={seed}\n" for seed in seeds))
    where = original if cache else bare
    environment = {"DVC_CACHE": str(repository / ".dvc/cache")} if cache else {}
    with ThreadPoolExecutor(len(seeds)) as pool:
        list(pool.map(partial(command, original, JOB, where, jobs, **environment), ("1", "2", "3")))
    if not cache:
        command(original, "dvc", "exp", "pull", "origin", "--all-commits")
    for seed in seeds:
        command(original, "dvc", "exp", "run", "--temp", "--force", "--name", f"alone-{seed}", "-S", f"seed={seed}")
    table = json.loads(command(original, "dvc", "exp", "show", "--all-commits", "--json"))
    rows = [row for revision in table for row in revision.get("experiments") or []]
    actual = {row["name"]: row["revs"][0]["data"]["metrics"][METRICS]["data"] for row in rows}
    assert [actual[f"job-{seed}"] for seed in seeds] == [actual[f"alone-{seed}"] for seed in seeds]
