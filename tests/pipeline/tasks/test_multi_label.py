"""Any number of labels for a text go through the stages, predict, score, a bank and the arena with the same answers."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from transformers import AutoConfig

from lsr import AdapterBank
from lsr.__main__ import main as lsr
from lsr.serve.passes import BatchRunner
from pipeline import params, score, tasks
from pipeline.arena import features
from pipeline.core import artifacts
from pipeline.data import base_models
from pipeline.methods import adapter_task
from pipeline.params.dataset_entry import DatasetEntry
from pipeline.predict.__main__ import main as predict
from pipeline.summary import main as summary
from pipeline.tasks import Outcome
from tests import kit, workspace
from tests.kit import refused, said, table
from tests.pipeline.arena import small
from tests.pipeline.tasks.animals import NAMES, animal
from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN, report, run, run_in

ROW = workspace.ROWS["animals"]
START = {"init": "warm_start", "init_examples": 16, "init_head_steps": 3, "learning_rate": 0.05}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder after all stages, in which animals have several labels, or none."""
    listed = ROW | {"source": {"kind": "files", "files": {"train": "animals.jsonl"}}}
    training = {"epochs": 8, "head_learning_rate": 0.02, "class_weights": "balanced"}
    changes = {"data": "animals", "lsr": START, "train": training}
    folder = workspace.make(tmp_path_factory.mktemp("several"), {"animals": ROW, "listed": listed}, **changes)
    rows = [animal(number) for number in range(240)]
    kit.write(folder / "animals.csv", [{"text": text, "tags": " | ".join(tags)} for text, tags in rows])
    kit.write(folder / "animals.jsonl", [{"text": text, "tags": tags or None} for text, tags in rows])
    return run_in(folder, TOKENIZE, FACTORIZE, TRAIN, EVALUATE)


@pytest.fixture(autouse=True)
def here(trained, monkeypatch):
    monkeypatch.chdir(trained)


def of(column):
    """Return the labels that the report has in a column, (examples, labels) of 0 and 1."""
    rows = table(artifacts.EVALUATE_PREDICTIONS)
    return np.array([[name in row[column].split("; ") for name in NAMES] for row in rows], int)


def test_the_stages_score_labels_by_thresholds_that_validation_has_chosen():
    found, actual, predicted = report(artifacts.EVALUATE_METRICS), of("actual"), of("predicted")
    for average in ("micro", "macro"):
        name = f"{average}_f1"
        assert found[name] == pytest.approx(f1_score(actual, predicted, average=average), abs=1e-6)
        assert found[f"{name}_baseline"] < found[f"{name}_low"] <= found[name] <= found[f"{name}_high"]
    texts = {row["text"]: row["actual"] for row in table(artifacts.EVALUATE_PREDICTIONS)}
    assert all(texts[text] == "; ".join(tags) for text, tags in map(animal, range(240)) if text in texts)
    assert "" in texts.values()  # texts without a label stay
    classes = {row["class"]: row for row in table(artifacts.EVALUATE_CLASSES)}
    assert [int(classes[name]["texts"]) for name in NAMES] == actual.sum(axis=0).tolist()
    assert [float(classes[name]["f1"]) for name in NAMES] == pytest.approx(
        f1_score(actual, predicted, average=None), abs=1e-5
    )
    assert "\nthe test split by class: class | precision | recall | f1 | texts | answers\n" in said(summary)


def test_predict_score_export_and_a_bank_give_the_same_answers():
    scored, task = table(artifacts.EVALUATE_PREDICTIONS), adapter_task.read(artifacts.ADAPTER)
    texts = [row["text"] for row in scored]
    assert len(task.thresholds) == 3
    assert [row["label"] for row in table(said(predict, *texts))] == [row["predicted"] for row in scored]
    assert f"{report(artifacts.EVALUATE_METRICS)['micro_f1']:.4f}" in said(
        score.main, "animals", str(artifacts.ADAPTER)
    )
    said(lsr, "export", "artifacts/adapter", "--to", "merged", "-o", "merged")
    assert AutoConfig.from_pretrained("merged").problem_type == "multi_label_classification"
    said(lsr, "bank", "--from", "artifacts/adapter", "-o", "bank")
    bank = AdapterBank.load(None, "bank")
    passes = BatchRunner(bank, base_models.load_tokenizer(params.load(params.TrainView).base_model), 24, 1)
    answers = passes.answers(passes.rows("adapter", bank.versions["adapter"], texts))
    assert ["; ".join(answer.applying) for answer in answers] == [row["predicted"] for row in scored]
    assert any(sum(answer.probabilities.values()) > 1.2 for answer in answers)
    card = (artifacts.ADAPTER / "README.md").read_text()
    assert 'problem_type="multi_label_classification"' in card
    assert f"it predicts which of 3 labels apply, by their probabilities: awake from {task.thresholds[0]:g}, " in card


def test_lists_are_split_and_read_as_texts_are():
    workspace.change(data="listed")
    before = kit.digests(artifacts.TOKENS)
    run(TOKENIZE)
    workspace.change(data="animals")
    assert kit.digests(artifacts.TOKENS) == before


def test_a_threshold_is_the_one_with_the_best_f1_and_rare_labels_share_one():
    task = tasks.of(DatasetEntry.model_validate(ROW))
    shares = torch.tensor([[0.105, 0.905, 0.505], [0.305, 0.805, 0.505], [0.205, 0.705, 0.505], [0.405, 0.605, 0.505]])
    labels = np.array([[0.0, 1, 0], [1, 1, 0], [0, 0, 0], [1, 0, 0]])
    outcome = Outcome(shares.repeat(5, 1).logit(), np.tile(labels, (5, 1)))
    task = task.tune_thresholds(outcome)
    assert task.facts.thresholds == (0.25, 0.75, 0.5)  # in the middle of those with the best F1; without a text of all
    assert task.scoring.scores(outcome) == {"micro_f1": 2 * 4 / (4 + 4 + 4), "macro_f1": pytest.approx(2 / 3)}
    few = task.tune_thresholds(Outcome(shares.logit(), labels))
    assert len(set(few.facts.thresholds)) == 1


def test_mistakes_are_one_line(tmp_path):
    label = ROW["label"]
    for changes, says in (
        ({"label": label | {"names": ["cat"]}}, "label.names: list should have at least 2 items, "),
        ({"tenant": "whose"}, "tenant: needs a label of classes or of a number"),
        ({"stratify": True}, "stratify: needs a label of classes"),
        ({"group": ["text"]}, "group: needs a label of classes or of a number"),
        ({"metrics": ["accuracy"]}, "metrics: accuracy does not fit this label; allowed are micro_f1, macro_f1"),
    ):
        refused(params.reading.validate, DatasetEntry, ROW | changes, "t.yaml", ("animals",), says=says)
    kit.write("animals.csv", "text,tags\na,cat\nb,awake|cta\n")
    refused(run, TOKENIZE, says="animals.csv: line 3: label 'cta' is none of awake, cat, wet; did you mean cat?")
    small.use(tasks={"animals": {}}, methods={"mean": {"adapter": "head_only", "features": "mean"}})
    says = "features: they need a task with classes, which animals is not"
    refused(features.check, small.cell("animals: mean").first(), says=says)
    task = json.loads((artifacts.ADAPTER / "task.json").read_text())
    kit.write(tmp_path / "task.json", task | {"thresholds": [0.5, 2, 0.5]})
    refused(adapter_task.read, tmp_path, says="task.json: thresholds must be a list of probabilities, got [0.5, 2")
