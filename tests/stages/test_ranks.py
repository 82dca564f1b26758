"""Trainings on several processes: the files of one process but for rounding, written once, whatever happens."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from pipeline import params, stage
from pipeline.core import artifacts
from pipeline.core.errors import UserError
from pipeline.methods import adapters
from pipeline.training import arguments, callbacks
from tests import deaths, forked, workspace
from tests.stages.running import TRAIN, leftovers, report, run

LAST_EPOCH = 20  # a step in it; the last of each epoch has 2 examples, fewer than 4 processes
TWO = ["--nproc_per_node", "2"]


@pytest.fixture(scope="module")
def trained(copied):
    """A workspace, and what one process has trained there."""
    with chdir(copied):
        return copied, written()


@pytest.fixture
def at(trained, monkeypatch):
    """The same, in its folder, without what was trained; and what that was."""
    folder, expected = trained
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(folder)
    shutil.rmtree(artifacts.ADAPTER)
    shutil.rmtree(".checkpoints")
    yield expected
    artifacts.ADAPTER.mkdir(exist_ok=True)
    Path(".checkpoints").mkdir(exist_ok=True)


def written():
    curves = {path.name: path.read_text().splitlines() for path in sorted(artifacts.TRAIN_CURVES.iterdir())}
    return load_file(artifacts.ADAPTER / adapters.WEIGHTS), curves, report(artifacts.TRAIN_METRICS)


def check_same(expected):
    """The adapter, the curves and the metrics are the expected ones but for rounding."""
    weights, curves, metrics = written()
    torch.testing.assert_close(weights, expected[0], rtol=1e-4, atol=1e-5)
    for name, lines in expected[1].items():
        assert [line.split(",")[0] for line in curves[name]] == [line.split(",")[0] for line in lines]
        values, others = ([float(line.split(",")[1]) for line in all_of[1:]] for all_of in (curves[name], lines))
        assert values == pytest.approx(others, rel=1e-4), name
    assert metrics == pytest.approx(expected[2], rel=1e-4)
    assert leftovers() == set()


def start(folder, rank, size, port, fails, output):
    """The stage, as one of several processes that a launcher has started."""
    os.chdir(folder)
    places = {"WORLD_SIZE": size, "RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in places.items()} | {"MASTER_ADDR": "127.0.0.1"}
    os.environ["OMP_NUM_THREADS"] = "1"  # as torchrun has it: without it accelerate sets it, with a warning
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    torch.set_num_threads(1)
    with Path(output).open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["stages.train"]
    from stages import train

    with patch.object(callbacks.Progress, "on_step_end", fails or callbacks.Progress.on_step_end):
        stage.run(train.main, params.TrainView, stage.Processes.ALL)


def together(size, fails=None):
    """Run that many processes; return how they ended, and the lines that they have printed."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True)  # a free port
    port = store.port
    del store
    deaths.serve()
    output = Path("output")
    output.unlink(missing_ok=True)
    processes = [
        deaths.CONTEXT.Process(target=start, args=(Path.cwd(), rank, size, port, fails, str(output.resolve())))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes], output.read_text().splitlines()


@pytest.mark.slow
def test_four_processes_train_what_one_does(at):
    """Also where a batch has fewer examples than there are processes."""
    codes, lines = together(4)
    assert codes == [0] * 4, lines
    assert sum(line.startswith("train: epoch") for line in lines) == 1
    check_same(at)


def killed(self, args, state, *_, **__):
    if state.global_step == LAST_EPOCH and args.process_index == 1:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_what_two_processes_leave_when_one_is_killed_is_finished_by_two_or_by_one(at):
    codes, lines = together(2, killed)
    assert codes == [2, -signal.SIGKILL]
    assert [line for line in lines if not line.startswith("train: ")] == [lines[-1]]
    assert lines[-1].startswith("a process was lost; the launcher says how: ")
    shutil.copytree(".checkpoints", "kept")
    assert together(2)[0] == [0, 0]
    check_same(at)
    shutil.rmtree(".checkpoints")
    shutil.move("kept", ".checkpoints")
    run(TRAIN)
    check_same(at)


class CutOffError(Exception):
    pass


def cut_off(self, args, state, *_, **__):
    if state.global_step == LAST_EPOCH:
        raise CutOffError


@pytest.mark.slow
def test_what_one_process_leaves_is_finished_by_two(at, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(callbacks.Progress, "on_step_end", cut_off)
        with pytest.raises(CutOffError):
            run(TRAIN)
    codes, lines = together(2)
    assert codes == [0, 0], lines
    check_same(at)


def mistaken(self, args, state, *_, **__):
    if args.process_index == 1:
        raise UserError("a mistake that one of them sees")


@pytest.mark.slow
def test_an_error_in_one_process_is_one_line_and_ends_all(at):
    codes, lines = together(2, mistaken)
    assert codes == [2, 2]
    assert [line for line in lines if not line.startswith("train: the curve")] == ["a mistake that one of them sees"]
    assert not artifacts.ADAPTER.exists()


@pytest.mark.slow
def test_processes_that_cannot_share_a_batch_are_refused_in_one_line(at):
    codes, lines = together(3)
    assert codes == [2] * 3
    said = [line for line in lines if line.startswith("params.yaml: ")]  # torch adds that the first one has left
    assert said == [
        "params.yaml: train.batch_size: 16 examples per step cannot be divided equally among 3 processes; these "
        "numbers of processes can: 1, 2, 4, 8, 16"
    ]
    assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize("value", ["true", "True"])  # accelerate takes both
@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_weights_that_a_launcher_would_share_out_are_refused_in_one_line(monkeypatch, kind, value):
    monkeypatch.chdir(workspace.ROOT)
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", value)
    with pytest.raises(UserError, match=f"^train: {kind} is not supported: each process holds .* start it by torchrun"):
        arguments.check_machine(params.load(params.TrainView).train)


LAUNCHERS = {
    "torchrun": ["torchrun", "--standalone", *TWO],
    "accelerate": ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_real_launchers(at, launcher):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(workspace.ROOT), "OMP_NUM_THREADS": "1"}
    environment["PYTHON_EXEC"] = str(forked.scripts() / "python")  # what torch's launcher starts as an interpreter
    words = [*LAUNCHERS[launcher], "-m", "stages.train"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("train: epoch") == 1
    check_same(at)
