"""A training that dies at any of its file operations, or whose files are damaged after, ends with the same bytes."""

import os
import pickle
import re
import shutil
from contextlib import chdir
from pathlib import Path

import pytest
import torch

from pipeline.core.errors import UserError
from pipeline.training import callbacks, checkpoints, run_folder
from tests import deaths
from tests.stages.running import EPOCHS, digests, leftovers, train

PATIENCE = 300  # seconds, for a process to begin
# Of the kinds of operations, those after which most can go wrong; the last of each kind.
AIMED = (
    r"half .*optimizer\.pt",
    r"os\.rename .*writing/checkpoint-\d+",
    r"os\.remove SHA256SUMS",
    r"os\.rename artifacts/adapter",
    r"os\.rename artifacts/\.adapter\.\d+",
    r"os\.rename reports/train/\.curves\.\d+",
)


def written():
    return digests("artifacts/adapter") | digests("reports/train")


@pytest.fixture(scope="module")
def trained(copied):
    """A workspace that is ready to train, and what an undisturbed training writes."""
    with chdir(copied):
        return copied, written()


@pytest.fixture
def at(trained, monkeypatch):
    """The same, in its folder."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(trained[0])
    return trained


@pytest.fixture(scope="module")
def operations(trained):
    """The file operations of an undisturbed training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DVC_ROOT", raising=False)
        return deaths.operations(trained[0], train)


@pytest.mark.slow
@pytest.mark.parametrize("aim", AIMED)
def test_a_death_at_an_operation_changes_nothing(at, operations, aim):
    folder, undisturbed = at
    number = max(number for number, operation in enumerate(operations, start=1) if re.fullmatch(aim, operation))
    deaths.die(folder, train, number)
    assert leftovers()
    train()
    assert written() == undisturbed
    assert leftovers() == set()


class KilledError(Exception):
    pass


@pytest.fixture(scope="module")
def left(trained, tmp_path_factory):
    """The checkpoints of a run that was cut off in its last epoch."""

    def kill(self, args, state, *_, **__):
        if state.epoch > EPOCHS - 0.5:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DVC_ROOT", raising=False)
        patch.chdir(trained[0])
        patch.setattr(callbacks.Progress, "on_step_end", kill)
        with pytest.raises(KilledError):
            train()
    return shutil.move(trained[0] / ".checkpoints", tmp_path_factory.mktemp("left"))


@pytest.fixture
def cut_off(at, left):
    """The folder of such a run, and what an undisturbed one writes."""
    shutil.copytree(left, ".checkpoints", dirs_exist_ok=True)
    (folder,) = (path for path in Path(".checkpoints").iterdir() if path.is_dir())
    yield folder, at[1]
    shutil.rmtree(".checkpoints")


def last(folder):
    return max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "no optimizer": lambda path: (path / "optimizer.pt").unlink(),
    "no random state": lambda path: (path / "rng_state.pth").unlink(),
    "a flipped bit": lambda path: flip(path / "adapter_model.safetensors"),
    "a stray file": lambda path: (path / "pytorch_model.bin").write_bytes(b"weights"),
    "empty": lambda path: (shutil.rmtree(path), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_changes_nothing(cut_off, capsys, damage):
    folder, undisturbed = cut_off
    DAMAGES[damage](last(folder))
    capsys.readouterr()
    train()
    assert "not intact, so skipped: checkpoint-" in capsys.readouterr().out
    assert written() == undisturbed


def test_a_run_that_was_moved_keeps_its_best_checkpoint(cut_off, tmp_path, monkeypatch):
    _, undisturbed = cut_off
    moved = tmp_path / "moved"
    shutil.move(".checkpoints", moved / ".checkpoints")
    Path(".checkpoints").mkdir()
    monkeypatch.setenv("DVC_ROOT", str(moved))
    train()
    assert written() == undisturbed
    assert [path.name for path in (moved / ".checkpoints").iterdir()] == ["lock"]


class Bomb:
    """A pickle that leaves a trace when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("bomb",)


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth"])
def test_a_checkpoint_runs_no_code_even_where_its_sums_are_right(cut_off, name):
    folder, _ = cut_off
    torch.save(Bomb(), last(folder) / name)
    checkpoints.seal(last(folder))
    with pytest.raises(pickle.UnpicklingError):
        train()
    assert not Path("bomb").exists()


def test_a_best_checkpoint_that_changes_while_the_training_runs_is_refused(cut_off, monkeypatch):
    keep, before = checkpoints.Checkpoints.keep, written()

    def keep_and_spoil(self, last, best):
        keep(self, last, best)
        flip(self.path(best) / "scheduler.pt")

    monkeypatch.setattr(checkpoints.Checkpoints, "keep", keep_and_spoil)
    with pytest.raises(UserError, match=r"scheduler.pt has changed, though this run wrote it; start the stage again"):
        train()
    assert written() == before


def train_held_up(folder, root, arrived, go):
    """Train in a folder, and wait at the first step until told to go on."""
    os.chdir(folder)
    os.environ["DVC_ROOT"] = str(root)

    def wait(*_, **__):
        arrived.set()
        go.wait()

    callbacks.Progress.on_step_end = wait
    train()


def train_second(folder, root, waits):
    """Train in a folder, and tell of having to wait."""
    os.chdir(folder)
    os.environ["DVC_ROOT"] = str(root)
    sleep = run_folder.time.sleep
    run_folder.time.sleep = lambda seconds: (waits.set(), sleep(seconds))
    train()


@pytest.mark.slow
def test_two_trainings_with_the_same_inputs_are_right_both(at, tmp_path, monkeypatch):
    """As experiments in temporary copies: the checkpoints of both are in the repository."""
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        shutil.copytree(at[0], folder)
        shutil.rmtree(folder / "artifacts/adapter")
    deaths.serve()
    arrived, waits, go = (deaths.CONTEXT.Event() for _ in range(3))
    one = deaths.CONTEXT.Process(target=train_held_up, args=(folders[0], at[0], arrived, go))
    other = deaths.CONTEXT.Process(target=train_second, args=(folders[1], at[0], waits))
    one.start()
    assert arrived.wait(PATIENCE)
    other.start()
    assert waits.wait(PATIENCE)
    go.set()
    for process in (one, other):
        process.join()
        assert process.exitcode == 0
    for folder in folders:
        monkeypatch.chdir(folder)
        assert written() == at[1]
    monkeypatch.chdir(at[0])
    assert leftovers() == set()
