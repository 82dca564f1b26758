"""A training that is killed while it writes, or moved after, ends with the same bytes."""

import itertools
import multiprocessing
import os
import shutil
from contextlib import chdir
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch

from tests import workspace
from tests.kit import digests
from tests.stages.running import FACTORIZE, TOKENIZE, TRAIN, killed_training, run

pytestmark = pytest.mark.nightly

EPOCHS = 3
DEAD = 9  # exit status
# What is called, and the call at which the process dies: of its second epoch, or at the end of the training.
DEATHS = {
    "half of an optimizer is written": ("torch", "save", 5),  # optimizer, schedule and random state of each epoch
    "a checkpoint is complete but aside": ("pathlib:Path", "rename", 2),
    "the adapter is complete but aside": ("pathlib:Path", "replace", "adapter"),
    "the curves are complete but aside": ("pathlib:Path", "replace", "curves"),
}


def train():
    """Train as the stage does, in a process that may have died here before."""
    torch.set_num_threads(1)
    run(TRAIN)


def die(folder, owner, name, when):
    """Train in a folder until the call of a function of a number, or with a path of a name."""
    os.chdir(folder)
    owner, calls = resolve_name(owner), itertools.count(1)
    usual = getattr(owner, name)

    def call(*words, **options):
        if next(calls) != when and not (isinstance(when, str) and Path(words[1]).name == when):
            return usual(*words, **options)
        if name == "save":
            usual(*words, **options)
            path = Path(words[1])
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        os._exit(DEAD)

    setattr(owner, name, call)
    train()


def leftovers():
    """What a stage that was cut off has left beside its outputs, and folders of checkpoints."""
    hidden = {path.as_posix() for folder in ("artifacts", "reports") for path in Path(folder).rglob(".*")}
    return hidden | {path.as_posix() for path in Path(".checkpoints").iterdir() if path.is_dir()}


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
    with chdir(folder):
        run(TOKENIZE, FACTORIZE, TRAIN)
        return folder, written()


@pytest.fixture
def at(trained, monkeypatch):
    """The same, in its folder."""
    monkeypatch.chdir(trained[0])
    return trained


@pytest.mark.parametrize("death", DEATHS)
def test_a_death_while_writing_changes_nothing(at, death):
    folder, undisturbed = at
    process = multiprocessing.get_context("spawn").Process(target=die, args=(folder, *DEATHS[death]))
    process.start()
    process.join()
    assert process.exitcode == DEAD
    assert leftovers()
    train()
    assert written() == undisturbed
    assert leftovers() == set()


def test_a_moved_repository_changes_nothing(at, tmp_path, monkeypatch):
    killed_training(monkeypatch, EPOCHS - 0.5)
    moved = tmp_path / "moved"
    shutil.copytree(".checkpoints", moved / ".checkpoints")
    monkeypatch.setenv("DVC_ROOT", str(moved))
    train()
    assert written() == at[1]
