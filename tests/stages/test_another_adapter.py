"""Another adapter's folder as a start: training goes on from its update."""

import shutil
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from lsr import export_lora
from lsr.loading.adapters import load_onto
from pipeline import params
from pipeline.core import artifacts
from pipeline.methods import adapters
from tests import workspace
from tests.kit import refused, table, write
from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN, base_model, logits, report, run

SHARED = {"rank_shape": [3], "separation_rank": 1, "share": "layers", "train": "core", "init": "warm_start"}
OTHER = "models/other"


@pytest.fixture
def other(tmp_path, monkeypatch):
    """A workspace with tokens, and the fresh adapter of SHARED in models/other."""
    folder = workspace.make(tmp_path, lsr={**SHARED, "init_examples": 40, "init_head_steps": 5}, train={"epochs": 1})
    monkeypatch.chdir(folder)
    run(TOKENIZE, FACTORIZE)
    Path(OTHER).parent.mkdir()
    artifacts.INIT.rename(OTHER)
    workspace.change(lsr={"init_examples": 1024, "init_head_steps": 60})  # which have no effect on what goes on from it
    return folder


@pytest.mark.parametrize("kind", ["LSR", "LORA"])
def test_training_goes_on_from_the_update_of_another_adapter(kind, other):
    if kind == "LORA":
        export_lora(Path(OTHER), Path("lora"))
        shutil.rmtree(OTHER)
        Path("lora").rename(OTHER)
    view = params.load(params.TrainView)
    expected = logits(load_onto(base_model(view), Path(OTHER)))
    workspace.change(lsr={"init": OTHER, "learning_rate": 0.1})
    run(TOKENIZE, FACTORIZE)
    begun = logits(adapters.load_adapter(base_model(view), artifacts.INIT, trainable=False))
    assert begun == pytest.approx(expected, abs=1e-5)
    assert {row["captured"] for row in table(artifacts.FACTORIZE_START)} == {"update"}
    run(TRAIN, EVALUATE)


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"target_modules": ["query"]}, "lsr.init: models/other adapts "),
        ({"target_modules": ["query", "key", "value"]}, "lsr.init: models/other does not adapt "),
        ({"init": "models/nothing"}, "models/nothing"),
    ],
)
def test_an_adapter_from_which_nothing_can_go_on_is_refused_in_a_line(section, says, other):
    workspace.change(lsr={"init": OTHER, **section})
    refused(run, FACTORIZE, says=says)
    assert not artifacts.INIT.exists()


ANIMALS = ("cat", "dog", "owl")
TURNED = ("owl", "cat", "dog")
CUT = {"validation": 0.2, "test": 0.2}
ROW = {"source": {"kind": "files", "files": {"train": "animals.csv"}}, "text": ["text"], "split": CUT}
LABELS = {  # a row of data without the names of its labels
    "classes": {**ROW, "label": {"column": "label"}, "metrics": ["accuracy"]},
    "multi_label": {**ROW, "label": {"multi_label": "label"}, "metrics": ["micro_f1"]},
    "tenants": {**ROW, "label": {"column": "label"}, "metrics": ["accuracy"], "tenant": "shop"},
    "number": {**ROW, "label": {"column": "at", "low": 0.0, "high": 120.0}, "metrics": ["pearson"]},
}


def choose(kind, names, shops=("acme", "bolt")):
    """Choose data whose labels have these names, in this order."""
    rows = [
        {"text": f"{pair[at % 2]} {at}", "label": names[at % len(names)], "shop": shops[at % 7 % 2], "at": at}
        for at, pair in enumerate(workspace.sentences(120))
    ]
    write("animals.csv", rows)
    row = LABELS[kind]
    named = {} if kind == "number" else {"names": list(names)}
    write("data/datasets.yaml", {"animals": {**row, "label": row["label"] | named}})
    workspace.change(data="animals")
    run(TOKENIZE)


@pytest.fixture
def learned(tmp_path, monkeypatch):
    """A function that trains an adapter for labels, and moves it to models/other."""
    form = {**SHARED, "init": "principal", "learning_rate": 0.02}
    monkeypatch.chdir(workspace.make(tmp_path, lsr=form, train={"epochs": 1, "head_learning_rate": 0.02}))

    def make(kind):
        choose(kind, ANIMALS)
        run(FACTORIZE, TRAIN)
        Path(OTHER).parent.mkdir()
        artifacts.ADAPTER.rename(OTHER)
        workspace.change(lsr={"init": OTHER})

    return make


def by_name(values, note):
    """The logits of each output by its name: a label, of tenants with the tenant."""
    tenants = note.get("tenants") or {"": note["labels"]}
    names = [(tenant, label) for tenant, labels in tenants.items() for label in labels]
    return {name: values[:, at].tolist() for at, name in enumerate(names)}


@pytest.mark.parametrize("kind", ["classes", "multi_label", "tenants"])
def test_the_outputs_of_another_head_come_into_the_order_of_the_labels(kind, learned):
    learned(kind)
    note = report(Path(OTHER) / "task.json")
    outputs = 6 if kind == "tenants" else 3
    plain = AutoModelForSequenceClassification.from_pretrained("tiny-roberta", num_labels=outputs)
    before = by_name(logits(PeftModel.from_pretrained(plain, OTHER)), note)
    choose(kind, TURNED)
    run(FACTORIZE)
    found = logits(adapters.load_adapter(base_model(params.load(params.TrainView)), artifacts.INIT, trainable=False))
    run(TRAIN)
    turned = report(artifacts.ADAPTER / "task.json")
    assert (turned["labels"], turned.get("tenants")) != (note["labels"], note.get("tenants"))
    after = by_name(found, turned)
    assert after.keys() == before.keys()
    for name, values in before.items():
        assert after[name] == pytest.approx(values, abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "other", "names", "says"),
    [
        ("classes", "classes", ("cat", "cow", "owl"), "its head is for cat, dog, owl, and animals has cat, cow, owl"),
        ("classes", "classes", ANIMALS[:2], "its head is for cat, dog, owl, and animals has cat, dog"),
        ("classes", "number", ANIMALS, "its head is for cat, dog, owl, and animals has a number"),
        ("tenants", "classes", ANIMALS, "cat of acme, dog of acme, owl of acme, cat of bolt and 2 more, and animals"),
    ],
)
def test_a_head_for_other_labels_is_refused_with_their_names(kind, other, names, says, learned):
    learned(kind)
    choose(other, names)
    assert refused(run, FACTORIZE, says=says).startswith("params.yaml: lsr.init: models/other: ")


def test_a_head_whose_labels_no_file_names_is_taken_as_it_is_with_a_line(learned, capfd):
    learned("classes")
    Path(OTHER, "task.json").unlink()
    run(FACTORIZE)
    line = "models/other: no task.json names its labels: its outputs are taken in the order of those of animals"
    assert line in capfd.readouterr().err
