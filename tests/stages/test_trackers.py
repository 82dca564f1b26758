"""A training that can be watched: what it writes for people and trackers, in their own packages, changes no result."""

import csv
import os
from contextlib import chdir
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.core import artifacts
from pipeline.training import callbacks
from tests import workspace
from tests.stages.running import STEPS, TRAIN, digests, run


def written():
    return digests("artifacts/adapter") | digests("reports/train")


@pytest.fixture(scope="module")
def trained(copied):
    """A workspace, and what a training has written there without a tracker."""
    with chdir(copied):
        return copied, written()


@pytest.fixture
def at(trained, tmp_path, monkeypatch):
    """Its folder as a temporary copy of a repository with the folder runs: that, and what is written without."""
    folder, undisturbed = trained
    monkeypatch.chdir(folder)
    monkeypatch.setattr(os, "environ", {**os.environ, "DVC_ROOT": str(tmp_path)})
    report("tensorboard", "dvclive")
    return tmp_path / "runs", undisturbed


def report(*words):
    values = workspace.read_yaml(Path("params.yaml"))
    workspace.write_yaml(Path("params.yaml"), workspace.merged(values, {"train": {"report_to": list(words)}}))


def scalars(runs, tag):
    (folder,) = (runs / "tensorboard").iterdir()
    found = EventAccumulator(str(folder))
    found.Reload()
    return [(event.step, pytest.approx(event.value, rel=1e-5)) for event in found.Scalars(tag)]


def live():
    with artifacts.TRAIN_LIVE.open() as file:
        return list(csv.DictReader(file))


def test_trackers_are_told_every_loss_and_change_no_byte_of_the_result(at):
    runs, undisturbed = at
    before = {path for path in Path().rglob("*") if path.is_file()}
    run(TRAIN)
    assert written() == undisturbed
    assert {path for path in Path().rglob("*") if path.is_file()} == before
    losses = [(int(row["step"]), float(row["loss"])) for row in live()]
    assert len(losses) == STEPS
    assert scalars(runs, "train/loss") == losses
    (folder,) = (runs / "dvclive").iterdir()
    with (folder / "plots/metrics/loss.tsv").open() as file:
        assert [float(row["loss"]) for row in csv.DictReader(file, delimiter="\t")] == pytest.approx(
            [loss for _, loss in losses], rel=1e-5
        )
    assert not list(runs.parent.rglob("dvc.yaml"))


class KilledError(Exception):
    pass


def test_a_training_that_goes_on_has_each_step_once_and_may_change_its_trackers(at, monkeypatch):
    runs, undisturbed = at
    whole = live()

    def kill(self, args, state, control, **_):
        if state.epoch > 1.5:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Progress, "on_step_end", kill)
        report("none")
        with pytest.raises(KilledError):
            run(TRAIN)
    assert live() == whole[: len(live())]
    assert len(live()) == 13
    assert not runs.exists()
    report("tensorboard")
    run(TRAIN)
    assert live() == whole
    assert written() == undisturbed
    assert [step for step, _ in scalars(runs, "train/loss")] == list(range(10, STEPS + 1))


def test_the_live_curve_is_where_the_stage_says(at, capsys, monkeypatch):
    run(TRAIN)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "the curve so far" in line)
    path = line.removeprefix("train: the curve so far is in ")
    monkeypatch.chdir(at[0].parent)
    assert len(Path(path).read_text().splitlines()) == 1 + STEPS


def test_the_learning_rate_is_the_adapters(at):
    rates = [float(row["learning_rate"]) for row in live()]
    values = workspace.read_yaml(Path("params.yaml"))
    assert max(rates) == values["lsr"]["learning_rate"] != values["train"]["head_learning_rate"]
