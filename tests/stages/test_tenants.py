"""Tenants through the stages: one adapter for all with a head for each, own ones where they help, and late ones."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoTokenizer

from lsr.serve.bank import AdapterBank
from lsr.tuner.files import WEIGHTS
from pipeline import params
from pipeline.core import artifacts
from pipeline.predict import __main__ as predict
from tests import workspace
from tests.kit import digests, refused, said, table, write
from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN, outcome, report, run
from tests.stages.shops import LABELS, rows

ROW = workspace.ROWS["shops"]
PRECISE = {"shared_adapter": "trained", "precision": "float32"}


@pytest.fixture
def shops(tmp_path, monkeypatch):
    """A workspace with three tenants, whose tokens are made."""
    training = {"epochs": 2, "head_learning_rate": 0.01}
    workspace.make(tmp_path, data="shops", adapter="lora", tenants=PRECISE, train=training)
    monkeypatch.chdir(tmp_path)
    write("data/shops.csv", rows(LABELS))
    write("data/datasets.yaml", {"shops": ROW})
    run(TOKENIZE)
    return tmp_path


@pytest.mark.parametrize("adapter", ["lora", "directions", "vera", "head_only"])
def test_the_bank_answers_as_the_adapter_of_all_and_is_what_is_scored(adapter, shops):
    workspace.change(adapter=adapter)
    run(FACTORIZE, TRAIN, EVALUATE)
    task, wide = outcome(params.load(params.EvaluateView), "test")  # by the adapter with the heads of all
    found = report(artifacts.EVALUATE_METRICS)
    assert found["accuracy"] == pytest.approx(task.scoring.scores(wide)["accuracy"], abs=1e-6)
    assert (found["tenants"], found["examples"]) == (3, len(wide.labels))
    each = {row["tenant"]: float(row["score"]) for row in table(artifacts.EVALUATE_TENANTS)}
    assert each == pytest.approx(
        {name: its["score"] for name, its in task.scoring.parts(wide, 100)[1].items()}, abs=1e-6
    )
    said_of = {row["text"]: (row["tenant"], row["predicted"]) for row in table(artifacts.EVALUATE_PREDICTIONS)}
    for name, labels in LABELS.items():
        text, (_, label) = next((text, its) for text, its in said_of.items() if its[0] == name)
        answer = table(said(predict.main, "--tenant", name, text, "--base", "tiny-roberta"))
        assert list(answer[0]) == ["text", "label", *(f"p({label})" for label in labels)]
        assert answer[0]["label"] == label


def test_two_runs_write_the_same_bytes(shops):
    run(FACTORIZE, TRAIN, EVALUATE)
    first = digests("artifacts", "reports")
    run(TOKENIZE, FACTORIZE, TRAIN, EVALUATE)
    assert digests("artifacts", "reports") == first


def test_a_later_tenant_gets_a_head_and_leaves_all_else_as_it_is(shops):
    run(FACTORIZE, TRAIN)
    shutil.copytree(artifacts.ADAPTER, "models/shared")
    before = load_file(Path("models/shared") / WEIGHTS)
    write("data/late.csv", rows({"late": ["a", "b"]}))
    write("data/datasets.yaml", {"late": ROW | {"source": {"kind": "files", "files": {"train": "data/late.csv"}}}})
    workspace.change(data="late", tenants={"shared_adapter": "models/shared"})
    run(TOKENIZE, FACTORIZE, TRAIN, EVALUATE)
    after = load_file(artifacts.ADAPTER / WEIGHTS)
    changed = {name.split(".")[-2] for name, value in after.items() if not value.equal(before[name])}
    assert changed == {"out_proj"}
    late = AdapterBank.load("tiny-roberta", artifacts.BANK)
    assert (late.names, late.task_infos["late"]["labels"]) == (["late"], ["a", "b"])


def test_a_file_names_the_tenant_of_each_row_and_who_asks_must_be_known(shops):
    run(FACTORIZE, TRAIN)
    for words, says in (
        ([], "--tenant: required with a bank; tenants: acme, bolt, cast"),
        (["--tenant", "acne"], "--tenant: no tenant 'acne' of 3 in the bank; did you mean acme?"),
        (["--adapter", "artifacts/adapter"], "--tenant: needs --adapter with a bank of tenants"),
    ):
        refused(predict.main, [*words, "a text", "--base", "tiny-roberta"], says=says)
    write("asked.csv", [{"shop": name, "text": "the cat number 3 sleeps"} for name in ("bolt", "acme")])
    found = table(said(predict.main, "--file", "asked.csv", "--base", "tiny-roberta"))
    assert [row["label"] in LABELS[row["shop"]] for row in found] == [True, True]
    assert all(0 < float(row["p"]) <= 1 for row in found)
    one = table(said(predict.main, "--tenant", "bolt", "the cat number 3 sleeps", "--base", "tiny-roberta"))[0]
    assert (one["label"], float(one[f"p({one['label']})"])) == (found[0]["label"], pytest.approx(float(found[0]["p"])))
    write("asked.csv", [{"shop": name, "text": "the cat number 3 sleeps"} for name in ("bolt", "", "acme")])
    words = ["--file", "asked.csv", "--base", "tiny-roberta"]
    refused(predict.main, words, says="row 2, shop: no tenant '' of 3 in the bank")


ALIKE = {"kind": "number", "labels": None}, {"max_length": 6}


@pytest.mark.parametrize("difference", ALIKE)
def test_tenants_that_read_or_answer_in_different_ways_are_not_answered_from_one_file(difference, shops):
    run(FACTORIZE, TRAIN)
    bank = AdapterBank.load("tiny-roberta", artifacts.BANK)
    contents = bank.contents("cast")
    if "kind" in difference:
        contents = replace(contents, heads={key: value[:1] for key, value in contents.heads.items()})
    bank.add("cast", contents, task_info=bank.task_infos["cast"] | difference, replace=True)
    bank.save("bank")
    text = "the cat number 3 sleeps in the garden"
    write("asked.csv", [{"shop": name, "text": text} for name in ("acme", "cast")])
    words = ["--adapter", "bank", "--base", "tiny-roberta"]
    key, value = next(iter(difference.items()))
    refused(predict.main, [*words, "--file", "asked.csv"], says=f"--tenant: required: {key} is {value} for cast and ")
    if key == "max_length":
        tokenizer = AutoTokenizer.from_pretrained("tiny-roberta")
        ids = tokenizer(text, truncation=True, max_length=value)["input_ids"]
        short = tokenizer.decode(ids, skip_special_tokens=True)
        answers = [said(predict.main, *words, "--tenant", "cast", asked) for asked in (text, short)]
        first, second = (answer.splitlines()[1].split(",")[-2:] for answer in answers)
        assert first == second
