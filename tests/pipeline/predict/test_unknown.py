"""Predictions for tenants that a bank does not have: the mean of those with the same labels, by plain PEFT."""

import json
import shutil

import pandas as pd
import pytest

from lsr import AdapterBank
from lsr.serve.group_names import name_group
from pipeline.predict import __main__ as predict
from tests.kit import refused, said
from tests.lsr.serve.test_fitting import TENANTS, TEXTS, logits_alone, save_tenants


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """A folder with a bank whose tenants were trained with a column `shop`, and PEFT's logits of some texts."""
    folder, model, tokenizer = save_tenants(tmp_path_factory.mktemp("bert"), "bert")
    bank = AdapterBank.of_tenants(folder / "adapter", str(folder / "base"))
    for name, labels in TENANTS.items():
        kind = "number" if labels is None else "classes"
        task_info = {"kind": kind, "columns": ["text"], "labels": labels, "tenant": "shop", "max_length": 28}
        bank.add(name, bank.contents(name), task_info=task_info, replace=True)
    bank.save(folder / "bank")
    return folder, logits_alone(model, tokenizer, TEXTS[:4])


def answered(folder, *words):
    """The rows that predict prints, as JSON."""
    printed = said(predict.main, "--adapter", str(folder / "bank"), "--base", str(folder / "base"), "--json", *words)
    return [json.loads(line) for line in printed.splitlines()]


def test_a_tenant_whom_the_bank_does_not_have_is_answered_by_its_labels(bank):
    folder, expected = bank
    mean = (expected["acme"][:, [1, 0]] + expected["corp"]) / 2
    chances = mean.double().softmax(dim=1)
    for row, chance in zip(
        answered(folder, "--tenant", "later", "--labels", "good,bad", *TEXTS[:4]), chances, strict=True
    ):
        assert [row["p(good)"], row["p(bad)"]] == pytest.approx(chance.tolist(), abs=1e-4)
        assert row["label"] == ("good", "bad")[int(chance.argmax())]
    for row, number in zip(
        answered(folder, "--tenant", "later", "--labels", "", *TEXTS[:4]),
        (expected["bolt"] + expected["eve"])[:, 0] / 2,
        strict=True,
    ):
        assert list(row.values())[1] == pytest.approx(float(number), abs=1e-3)


def test_known_tenants_of_a_file_answer_by_their_own_heads_and_others_by_the_group(bank, tmp_path):
    folder, expected = bank
    of_classes = AdapterBank.load(str(folder / "base"), folder / "bank")
    of_classes.remove("bolt")
    of_classes.remove("eve")
    of_classes.save(tmp_path / "bank")
    shutil.copytree(folder / "base", tmp_path / "base")
    table = pd.DataFrame({"shop": ["acme", "new", "dora", "other"], "text": TEXTS[:4]})
    table.to_csv(tmp_path / "asked.csv", index=False)
    table[["text"]].to_csv(tmp_path / "nameless.csv", index=False)
    group = (expected["acme"] + expected["corp"][:, [1, 0]]) / 2
    of_rows = [expected["acme"][0], group[1], expected["dora"][2], group[3]]
    names = [("bad", "good"), ("bad", "good"), ("a", "b", "c"), ("bad", "good")]
    rows = answered(tmp_path, "--labels", "bad,good", "--file", str(tmp_path / "asked.csv"))
    for row, logits, labels in zip(rows, of_rows, names, strict=True):
        chances = logits.double().softmax(dim=0)
        assert row["p"] == pytest.approx(float(chances.max()), abs=1e-4)
        assert row["label"] == labels[int(chances.argmax())]
    nameless = answered(tmp_path, "--labels", "bad,good", "--file", str(tmp_path / "nameless.csv"))
    shares = group.double().softmax(dim=1).amax(dim=1).tolist()
    assert [row["p"] for row in nameless] == pytest.approx(shares, abs=1e-4)


def test_rows_that_a_group_has_of_its_own_answer_and_are_no_tenant(bank, tmp_path):
    folder, expected = bank
    with_group = AdapterBank.load(str(folder / "base"), folder / "bank")
    with_group.add_groups({name_group(("bad", "good")): with_group.contents("corp")})
    with_group.remove("acme")
    with_group.save(tmp_path / "bank")
    shutil.copytree(folder / "base", tmp_path / "base")
    chances = expected["corp"].double().softmax(dim=1)[:, 0]
    for tenant in (["--tenant", "later", "--labels", "bad,good"], ["--tenant", "corp"]):
        rows = answered(tmp_path, *tenant, *TEXTS[:4])
        assert [row["p(good)"] for row in rows] == pytest.approx(chances.tolist(), abs=1e-4)
    given = ["--adapter", str(tmp_path / "bank"), "--base", str(folder / "base"), "a text"]
    refused(predict.main, [*given, "--tenant", "later"], says="--tenant: no tenant 'later' of 4 in the bank")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--tenant", "acme", "--labels", "bad,good"), "--labels: has no effect: acme is a tenant of the bank"),
        (("--tenant", "new", "--labels", "Good,bad"), "did you mean bad, good?"),
        (
            ("--tenant", "new", "--labels", "bad"),
            "'bad': only some of those of other tenants, bad, good; name all of them",
        ),
        (("--tenant", "new", "--labels", "bad,,good"), "--labels: needed: names, separated by commas"),
        (("--tenant", "new", "--labels", "bad,bad,good"), "each must be given once"),
        (("--tenant", "new"), "no tenant 'new' of 5 in the bank"),
        (("--adapter", "{folder}/adapter", "--labels", "bad,good"), "--labels: needs --adapter with a bank of tenants"),
    ],
)
def test_labels_that_do_not_help_are_one_line(bank, words, says):
    folder, _ = bank
    given = ["--adapter", str(folder / "bank"), "--base", str(folder / "base"), "a text"]
    refused(predict.main, [*given, *(word.format(folder=folder) for word in words)], says=says)
