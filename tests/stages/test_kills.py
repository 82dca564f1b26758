"""A training that dies at any of its file operations, or whose files are damaged after, ends with the same bytes."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.core import artifacts
from pipeline.training import callbacks
from tests import deaths, workspace
from tests.stages.running import FACTORIZE, TOKENIZE, TRAIN, digests, leftovers, run

pytestmark = pytest.mark.nightly

EPOCHS = 3
# Of the kinds of operations, those after which most can go wrong; the last of each kind.
AIMED = (
    r"half .*optimizer\.pt",
    r"os\.rename .*writing/checkpoint-\d+",
    r"os\.rename artifacts/\.adapter\..*",
    r"os\.rename reports/train/\.curves\..*",
)


def train():
    """Train as the stage does, in a process that may have died here before."""
    torch.set_num_threads(1)
    artifacts.sweep()
    run(TRAIN)


def written():
    return digests("artifacts/adapter") | digests("reports/train")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workspace in which a model that drops out has been trained, and what that has written."""
    folder = workspace.make(
        tmp_path_factory.mktemp("trained"),
        train={"epochs": EPOCHS},
        lsr={"dropout": 0.1, "learning_rate": 0.05},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("DVC_ROOT", raising=False)
        run(TOKENIZE, FACTORIZE, TRAIN)
        return folder, written()


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


def test_a_damaged_checkpoint_and_a_moved_repository_change_nothing(at, tmp_path, monkeypatch):
    def kill(self, args, state, *_, **__):
        if state.epoch > EPOCHS - 0.5:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Progress, "on_step_end", kill)
        with pytest.raises(KilledError):
            train()
    moved = tmp_path / "moved"
    shutil.copytree(".checkpoints", moved / ".checkpoints")
    last = max(Path(".checkpoints").glob("*/checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    (last / "optimizer.pt").write_bytes(b"")
    train()
    assert written() == at[1]
    monkeypatch.setenv("DVC_ROOT", str(moved))
    train()
    assert written() == at[1]
