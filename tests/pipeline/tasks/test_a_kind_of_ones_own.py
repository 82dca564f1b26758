"""A kind of task that is not the pipeline's own goes through the stages, predict, score and the arena, in one file."""

import copy
import json
import math
import shutil

import pandas as pd
import pytest
import torch

from pipeline import params, score
from pipeline.arena import task_tokens
from pipeline.arena.measure import measure
from pipeline.core import artifacts
from pipeline.data import base_models, tokens
from pipeline.methods import adapter_task
from pipeline.params.dataset_entry import DatasetEntry
from pipeline.predict.__main__ import main as predict
from tests import kit, workspace
from tests.kit import refused, said, table
from tests.pipeline.arena import small
from tests.pipeline.tasks import ordered
from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN, report, run_in

LEVELS = ("bad", "fair", "good", "superb")
ROW = workspace.ROWS["levels"]
START = {"init": "lora_update", "init_examples": 16, "init_head_steps": 3, "init_epochs": 1, "learning_rate": 0.05}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder after all stages, in which animals have levels."""
    changes = {"data": "levels", "lsr": START, "train": {"epochs": 8, "head_learning_rate": 0.02}}
    folder = workspace.make(tmp_path_factory.mktemp("levels"), {"levels": ROW}, **changes)
    animals = ("cat", "dog", "owl", "fox")
    rows = [(f"the {animals[number % 4]} number {number} sleeps", LEVELS[number % 4]) for number in range(240)]
    kit.write(folder / "levels.csv", [{"review": review, "stars": stars} for review, stars in rows])
    with pytest.MonkeyPatch.context() as patch:
        ordered.register(patch)
        return run_in(folder, TOKENIZE, FACTORIZE, TRAIN, EVALUATE)


@pytest.fixture(autouse=True)
def here(trained, monkeypatch):
    ordered.register(monkeypatch)
    monkeypatch.chdir(trained)


def test_the_stages_score_it_by_its_metric_and_its_loss():
    found, rows = report(artifacts.EVALUATE_METRICS), table(artifacts.EVALUATE_PREDICTIONS)
    numbers = [[LEVELS.index(row[name]) for row in rows] for name in ("actual", "predicted")]
    assert found["score"] == found["kappa"] == pytest.approx(ordered.kappa(*numbers), abs=1e-6)
    assert found["kappa_low"] <= found["kappa"] <= found["kappa_high"]
    assert found["kappa_baseline"] == 0
    assert found["kappa"] > 0.2
    assert found["loss"] < found["loss_baseline"] < math.log(2)  # not a cross-entropy of four classes
    assert "it predicts a level from bad to superb." in artifacts.CARD.read_text()


def test_a_copy_of_the_model_computes_the_loss_by_its_own_weights():
    view = params.load(params.TrainView)
    model = base_models.load_base_model(view.base_model, tokens.load_task(view.dataset))
    copied = copy.deepcopy(model)
    for parameter in copied.classifier.parameters():
        parameter.data.zero_()
    batch = {"input_ids": torch.tensor([[0, 7, 2], [0, 9, 2]]), "labels": torch.tensor([0, 3])}
    assert copied(**batch).loss.item() == pytest.approx(math.log(2))
    assert model(**batch).loss.item() != pytest.approx(math.log(2))


def test_no_regression_fits_it(tmp_path, trained, monkeypatch):
    assert not [name for name in report(artifacts.EVALUATE_METRICS) if "regression" in name]
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    workspace.change(adapter="regression", train={"epochs": 2, "head_learning_rate": 0.002})
    refused(run_in, tmp_path, FACTORIZE, TRAIN, says="adapter: regression: no regression fits this task type; choose")


def test_predict_needs_the_adapter_alone():
    assert json.loads((artifacts.ADAPTER / "task.json").read_text())["kind"] == "ordered"
    scored = table(artifacts.EVALUATE_PREDICTIONS)
    asked = table(said(predict, *(row["text"] for row in scored)))
    assert [row["level"] for row in asked] == [row["predicted"] for row in scored]
    assert f"{report(artifacts.EVALUATE_METRICS)['kappa']:.4f}" in said(score.main, "levels", str(artifacts.ADAPTER))


def test_the_arena_keeps_its_answers_and_labels(tmp_path):
    small.use(tasks={"levels": {}}, methods={"update": {"adapter": "lsr", "params": small.LSR}})
    training = small.cell("levels: update").first()
    record = measure(training)
    assert record.status == "finished", record.reason
    task_tokens.write_labels(training, tmp_path / "levels.csv")
    labels = pd.read_csv(tmp_path / "levels.csv")["label"]
    assert record.score() == pytest.approx(ordered.kappa(labels, record.predicted), abs=1e-6)


def test_its_form_says_what_goes_with_it_and_without_it_is_unknown(monkeypatch):
    for changes, says in (
        ({"metrics": ["kapa"]}, "metrics: kapa does not fit this label; did you mean kappa?"),
        ({"stratify": True}, "stratify: needs a label of classes"),
        ({"label": {**ROW["label"], "names": ["a", "b"]}}, "label.names: no such key"),
    ):
        refused(params.reading.validate, DatasetEntry, ROW | changes, "t.yaml", ("levels",), says=says)
    monkeypatch.undo()
    refused(params.reading.validate, DatasetEntry, ROW, "t.yaml", ("levels",), says="label.order: no such key")


def test_a_note_of_an_unknown_kind_is_refused(tmp_path):
    shutil.copytree(artifacts.ADAPTER, tmp_path, dirs_exist_ok=True)
    kit.edit(tmp_path / "task.json", kind="nmber")
    refused(adapter_task.read, tmp_path, says="task.json: kind: no such task type; did you mean number?; there are ")
    kit.edit(tmp_path / "task.json", kind="several")  # as in files of earlier versions
    refused(adapter_task.read, tmp_path, says="task.json: kind: several is now called multi_label")
