"""Tenants in one data set: a split, a score and labels for each, one adapter for all.

Held to plain transformers and PEFT, a plain training loop, scikit-learn and scipy.
"""

import copy
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from scipy import optimize, special, stats
from sklearn import metrics
from torch.nn import functional
from transformers import AutoTokenizer

from lsr import AdapterBank
from tests import reference, rows
from tests.helpers import (
    digests,
    edit,
    printed,
    read_json,
    read_table,
    refused,
    run_stages,
    write,
)

FRACTIONS = {"train": 0.6, "validation": 0.2, "test": 0.2}
SPLITS = tuple(FRACTIONS)
RESAMPLES = rows.SMALL["evaluate"]["resamples"]
LENGTH = rows.SMALL["tokenize"]["max_length"]
COUNTS = {"acme": 60, "bolt": 50, "cast": 40}
LABELS = {"acme": ["no", "yes"], "bolt": ["9", "10", "11"], "cast": ["no", "yes"]}
SET = {"acme": "no, yes", "bolt": "9, 10, 11", "cast": "no, yes"}  # tenants with the same labels share a head
SHARED = {"head": "shared", "precision": "float32"}
ENTRY = rows.USUAL | {"tenant": "shop", "label": {"column": "label"}, "metrics": ["accuracy", "macro_f1"]}
NUMBER = ENTRY | {"label": {"column": "rating", "low": 0.0, "high": 4.0}, "metrics": ["pearson"]}
ENTRIES = {"shops": ENTRY, "ratings": NUMBER}


def table_of(counts):
    """Return rows of tenants; the labels of acme and cast have the same names and mean different things."""
    table = []
    for shop, count in counts.items():
        for number in range(count):
            row = rows.example(number)
            places = {"acme": row["weather"] == "wet", "cast": row["animal"] == "cat"}
            place = int(places.get(shop, ("low", "mid", "high").index(row["size"])))
            kept = {"text": f"{shop} {row['text']}", "rating": row["rating"]}
            table.append(kept | {"shop": shop, "label": LABELS[shop][place]})
    return table


TABLE = table_of(COUNTS)
TRUTH = {row["text"]: row for row in TABLE}


def read_tokens(folder, split):
    """Return the examples of a split as a table."""
    return Dataset.from_file(str(folder / f"artifacts/tokens/{split}.arrow")).to_pandas()


def read_split(folder, split):
    """Return the rows of a split, in its order."""
    return [TRUTH[text] for text in read_tokens(folder, split)["text"]]


def tokenize(folder, table):
    """Make the splits of rows; return all examples as a table, with their splits."""
    rows.make_workspace(folder, "shops", rows=table, entries=ENTRIES)
    run_stages(folder, "tokenize")
    tables = [read_tokens(folder, split).assign(split=split) for split in SPLITS]
    return pd.concat(tables)


def test_each_label_of_each_tenant_has_its_fraction_in_each_split(tmp_path):
    examples = tokenize(tmp_path, TABLE)
    assert len(examples) == len(TABLE)
    counts = examples.groupby(["tenant", "label"])["split"].value_counts().unstack()
    assert len(counts) == sum(map(len, LABELS.values()))
    totals = counts.sum(axis=1)
    for split, fraction in FRACTIONS.items():
        assert (counts[split] - fraction * totals).abs().max() <= 1


def test_the_splits_of_a_tenant_do_not_depend_on_the_others(tmp_path):
    together = tokenize(tmp_path / "together", TABLE)
    alone = tokenize(tmp_path / "alone", table_of({"acme": COUNTS["acme"]}))
    own = together[together["tenant"] == 0]
    columns = ["text", "split"]
    assert set(map(tuple, alone[columns].values)) == set(map(tuple, own[columns].values))


def test_no_tenant_trains_on_a_text_that_is_scored_for_another(tmp_path):
    shared = []
    for shop, labels in (("acme", ["no", "yes"]), ("bolt", ["yes", "no"])):
        for number in range(40):
            text = rows.example(number)["text"]
            shared.append({"shop": shop, "text": text, "label": labels[number % 2]})
    examples = tokenize(tmp_path, shared)
    is_trained = examples["split"] == "train"
    scored = examples[~is_trained]
    assert not set(examples[is_trained]["text"]) & set(scored["text"])
    assert examples[is_trained]["tenant"].nunique() == 2


def test_of_many_small_tenants_each_split_has_its_fraction_and_train_has_every_label(tmp_path):
    small = []
    for tenant in range(60):
        for number in range(5 + tenant % 3):
            row = {"shop": f"shop {tenant}", "text": f"{number} of {tenant}"}
            small.append(row | {"label": "abbc"[number % 4]})
    examples = tokenize(tmp_path, small)
    found = examples["split"].value_counts() / len(small)
    assert found.to_dict() == pytest.approx(FRACTIONS, abs=0.05)
    trained = examples[examples["split"] == "train"]
    assert len(trained[["tenant", "label"]].drop_duplicates()) == 60 * 3


def make_rows(labels):
    """Return rows of one tenant with these labels."""
    return [{"shop": "acme", "text": str(number), "label": label} for number, label in enumerate(labels)]


MISTAKES = {
    "few texts": (make_rows("abab"), {}, "5 texts"),
    "one label": (make_rows("aaaaaaaaa"), {}, "2 different labels"),
    "a path": ([row | {"shop": "../x"} for row in TABLE], {}, "'../x'"),
    "a long label": (make_rows(["a" * 201, "b"] * 5), {}, "at most 200"),
    "an unknown label": (TABLE, {"label": {"column": "label", "names": ["no", "yes"]}}, "no, yes"),
    "no number": (TABLE, NUMBER | {"label": {"column": "label", "low": 0, "high": 1}}, "number"),
    "a metric of two classes": (TABLE, {"metrics": ["f1"]}, "macro_f1"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_rows_or_entry_is_one_line(tmp_path, monkeypatch, name):
    table, entry, says = MISTAKES[name]
    rows.make_workspace(tmp_path, "shops", rows=table, entries={"shops": ENTRY | entry})
    monkeypatch.chdir(tmp_path)
    refused("stages.tokenize", says=says)


def test_a_tenant_or_a_label_of_test_must_be_in_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = {"kind": "files", "files": {"train": rows.FILE, "test": "data/test.csv"}}
    entry = ENTRY | {"source": source, "split": {"validation": 0.2}}
    rows.make_workspace(tmp_path, "shops", rows=TABLE, entries={"shops": entry})
    row = {"shop": "acme", "text": "a new text", "label": "yes"}
    for change, says in (({"shop": "dolt"}, "dolt"), ({"label": "perhaps"}, "perhaps")):
        write(tmp_path / "data/test.csv", [row | change])
        refused("stages.tokenize", says=says)


def average_heads(tensors):
    """Return weight and bias for each set of labels: the mean of its tenants', as parameters in float64."""
    heads = {}
    for name in dict.fromkeys(SET.values()):
        same = [outputs_of(shop) for shop in COUNTS if SET[shop] == name]
        head = []
        for tensor in (tensors["classifier.weight"], tensors["classifier.bias"]):
            mean = torch.stack([tensor[own] for own in same]).double().mean(dim=0)
            head.append(mean.requires_grad_())
        heads[name] = head
    return heads


def train_plainly(heads, examples, epochs, rate, decay):
    """Train heads by AdamW, each step on all texts; return the loss before each step, and the heads after it."""
    weights, biases = zip(*heads.values(), strict=True)
    optimizer = torch.optim.AdamW(
        [
            {"params": weights, "weight_decay": decay},
            {"params": biases, "weight_decay": 0.0},
        ]
    )
    losses = []
    states = []
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - epoch / epochs)
        each = []
        for shop, (features, labels) in examples.items():
            logits = functional.linear(features, *heads[SET[shop]])
            each.append(functional.cross_entropy(logits, labels))
        loss = torch.stack(each).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*weights, *biases], 1.0)
        optimizer.step()
        losses.append(loss.item())
        states.append(copy.deepcopy(heads))
    return losses, states


def test_the_loss_is_the_mean_over_tenants_and_those_with_the_same_labels_share_a_head(tmp_path):
    """Each step of training reads all texts, so that a plain loop needs no order of theirs."""
    train = {"epochs": 5, "head_learning_rate": 0.03, "weight_decay": 0.1}
    rows.make_workspace(
        tmp_path,
        "shops",
        rows=TABLE,
        entries=ENTRIES,
        adapter="head_only",
        tenants=SHARED,
        train=train | {"batch_size": 200, "warmup_ratio": 0},
    )
    run_stages(tmp_path, "tokenize", "factorize_init", "train")
    heads = average_heads(reference.tensors_of(tmp_path / "artifacts/init"))
    losses, states = train_plainly(heads, read_features(tmp_path), *train.values())
    curve = read_table(tmp_path / "reports/train/curves/loss.csv")
    assert [float(row["loss"]) for row in curve] == pytest.approx(losses, rel=1e-4)

    best = read_json(tmp_path / "reports/train/metrics.json")["best_epoch"]
    (temperature,) = set(read_json(tmp_path / "artifacts/adapter/task.json")["temperatures"])
    saved = reference.tensors_of(tmp_path / "artifacts/adapter")
    for shop in COUNTS:
        weight, bias = states[best - 1][SET[shop]]
        own = outputs_of(shop)
        found = saved["classifier.weight"][own], saved["classifier.bias"][own]
        for tensor, expected in zip(found, (weight, bias), strict=True):
            torch.testing.assert_close(temperature * tensor.double(), expected, rtol=1e-3, atol=1e-4)


def outputs_of(shop):
    """Return the outputs of the head that are a tenant's."""
    names = list(LABELS)
    before = names[: names.index(shop)]
    first = sum(len(LABELS[name]) for name in before)
    return slice(first, first + len(LABELS[shop]))


@torch.no_grad()
def read_features(folder):
    """Return what the last layer reads of the texts of train, and their class numbers, by tenant."""
    model = reference.load_alone(folder / "models/bert", outputs=7)
    tokenizer = AutoTokenizer.from_pretrained(folder / "models/bert")
    examples = {shop: ([], []) for shop in COUNTS}
    for row in read_split(folder, "train"):
        features, labels = examples[row["shop"]]
        tokens = reference.encoded(tokenizer, (row["text"],), LENGTH)
        features.append(model.bert(**tokens).pooler_output[0].double())
        labels.append(LABELS[row["shop"]].index(row["label"]))
    return {shop: (torch.stack(features), torch.tensor(labels)) for shop, (features, labels) in examples.items()}


class Judged(NamedTuple):
    """What plain libraries make of the texts of a tenant."""

    texts: list
    actual: np.ndarray
    logits: np.ndarray


class Run(NamedTuple):
    """A run, its report, and what plain transformers and PEFT say of each text of test."""

    folder: object
    report: dict
    task: dict
    tenants: dict


def judge_split(folder, split):
    """Return the logits of the texts of each tenant alone, by the adapter with the outputs of all tenants."""
    task = read_json(folder / "artifacts/adapter/task.json")
    is_number = task["kind"] == "number"
    model = reference.load_alone(folder / "models/bert", folder / "artifacts/adapter", 3 if is_number else 7)
    tokenizer = AutoTokenizer.from_pretrained(folder / "models/bert")
    tenants = {}
    for place, (shop, names) in enumerate(LABELS.items()):
        table = [row for row in read_split(folder, split) if row["shop"] == shop]
        texts = [row["text"] for row in table]
        logits = reference.logits_alone(model, tokenizer, [(text,) for text in texts], LENGTH).numpy()
        if is_number:
            actual = np.array([row["rating"] for row in table])
            tenants[shop] = Judged(texts, actual, logits[:, place])
        else:
            actual = np.array([names.index(row["label"]) for row in table])
            tenants[shop] = Judged(texts, actual, logits[:, outputs_of(shop)])
    return tenants


@pytest.fixture(scope="module")
def judge(trained):
    """A function that returns a run with an adapter."""

    @cache
    def of(adapter, data="shops"):
        folder = trained(data, rows=TABLE, entries=ENTRIES, adapter=adapter, tenants=SHARED)
        report = read_json(folder / "reports/evaluate/metrics.json")
        report |= report.pop("details")[0]
        task = read_json(folder / "artifacts/adapter/task.json")
        return Run(folder, report, task, judge_split(folder, "test"))

    return of


def close(value):
    """Return a value up to the digits of a report."""
    return pytest.approx(value, abs=1e-5)


def check_mean(report, name, values, intervals):
    """Hold a mean over tenants to that of scores; its interval is Student's, but not narrower than that of texts."""
    values = np.array(values)
    low, high = np.array(intervals).T
    count = len(values)
    student = stats.t.ppf(0.975, count - 1) * stats.sem(values)
    below = max(student, np.linalg.norm(values - low) / count)
    above = max(student, np.linalg.norm(high - values) / count)
    mean = values.mean()
    least = -1 if name == "pearson" else 0
    assert report[name] == close(mean)
    assert report[f"{name}_low"] == close(max(least, mean - below))
    assert report[f"{name}_high"] == close(min(1, mean + above))


def check_tenant(row, *expected):
    """Hold the line of a tenant in the table to a score, its interval and its baseline."""
    columns = ("score", "low", "high", "baseline")
    assert [float(row[column]) for column in columns] == close(list(expected))


@pytest.mark.parametrize("adapter", ["lora", "lsr"])
def test_scores_are_means_over_tenants_and_each_has_a_line(judge, adapter):
    run = judge(adapter)
    table = {row["tenant"]: row for row in read_table(run.folder / "reports/evaluate/tenants.csv")}
    assert list(table) == list(LABELS)
    scores = {"accuracy": [], "macro_f1": []}
    intervals = {"accuracy": [], "macro_f1": []}
    losses = []
    for shop, (texts, actual, logits) in run.tenants.items():
        predicted = logits.argmax(axis=1)
        shares = special.softmax(logits, axis=1)
        losses.append(metrics.log_loss(actual, shares, labels=range(len(LABELS[shop]))))
        for name in scores:
            scores[name].append(reference.SCORES[name](actual, predicted))
        exact = reference.exact_interval((actual == predicted).sum(), len(texts))
        intervals["accuracy"].append(exact)
        bootstrap = reference.bootstrap_interval(reference.macro_f1, actual, predicted, RESAMPLES)
        intervals["macro_f1"].append(bootstrap)
        baseline = np.bincount(actual).max() / len(actual)
        assert int(table[shop]["texts"]) == len(texts)
        check_tenant(table[shop], scores["accuracy"][-1], *exact, baseline)
    for name, values in scores.items():
        check_mean(run.report, name, values, intervals[name])
    assert run.report["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert run.report["tenants"] == len(LABELS)


def test_numbers_of_tenants_have_a_score_each(judge):
    run = judge("lora", "ratings")
    table = {row["tenant"]: row for row in read_table(run.folder / "reports/evaluate/tenants.csv")}
    scores = []
    intervals = []
    errors = []
    for shop, (_, actual, outputs) in run.tenants.items():
        scores.append(reference.SCORES["pearson"](actual, outputs))
        intervals.append(reference.bootstrap_interval(reference.SCORES["pearson"], actual, outputs, RESAMPLES))
        errors.append(np.mean((actual - outputs) ** 2))
        check_tenant(table[shop], scores[-1], *intervals[-1], 0)
    check_mean(run.report, "pearson", scores, intervals)
    assert run.report["loss"] == pytest.approx(np.mean(errors), rel=1e-3)


@pytest.mark.parametrize("adapter", ["lora", "lsr"])
def test_the_bank_and_predict_say_what_was_scored(judge, adapter, tmp_path, monkeypatch):
    run = judge(adapter)
    monkeypatch.chdir(run.folder)
    reported = {row["text"]: row for row in read_table(run.folder / "reports/evaluate/predictions.csv")}
    asked = []
    for shop, own in run.tenants.items():
        asked.extend({"shop": shop, "text": text} for text in own.texts)
    file = write(tmp_path / "asked.csv", asked)
    answered = {row["text"]: row for row in read_table(printed("pipeline.predict", "--file", file))}
    for shop, (texts, actual, logits) in run.tenants.items():
        shares = special.softmax(logits, axis=1)
        for number, text in enumerate(texts):
            label = LABELS[shop][shares[number].argmax()]
            row = reported[text]
            assert row["tenant"] == shop
            assert row["actual"] == LABELS[shop][actual[number]]
            assert row["predicted"] == answered[text]["label"] == label
            assert float(answered[text]["p"]) == close(shares[number].max())
        (one,) = read_table(printed("pipeline.predict", "--tenant", shop, texts[0]))
        found = [float(one[f"p({label})"]) for label in LABELS[shop]]
        assert found == close(shares[0])
    bank = AdapterBank.load("models/bert", "artifacts/bank")
    assert bank.names == list(LABELS)
    assert run.task["tenants"] == LABELS


@pytest.mark.parametrize("words", [[], ["--tenant", "acne"], ["--tenant", "acme", "--adapter", "artifacts/adapter"]])
def test_who_asks_must_be_a_tenant(judge, monkeypatch, words):
    monkeypatch.chdir(judge("lora").folder)
    refused("pipeline.predict", *words, "a text", says="--tenant")


def test_probabilities_have_one_temperature_and_the_errors_of_all_texts(judge):
    run = judge("lora")
    (temperature,) = set(run.task["temperatures"])
    validation = judge_split(run.folder, "validation").values()
    count = sum(len(own.texts) for own in validation)

    def cross_entropy(log):
        total = 0.0
        for _, actual, logits in validation:
            width = logits.shape[1]
            targets = (count * np.eye(width)[actual] + 1 / width) / (count + 1)
            shares = special.log_softmax(logits / np.exp(log), axis=1)
            total -= np.sum(targets * shares)
        return total

    found = optimize.minimize_scalar(cross_entropy, bounds=(-2, 2), method="bounded", options={"xatol": 1e-9})
    assert np.exp(found.x) == pytest.approx(1, rel=2e-3)
    for prefix, factor in (("", 1), ("uncalibrated_", temperature)):
        squares = []
        for _, actual, logits in run.tenants.values():
            shares = special.softmax(factor * logits, axis=1)
            flags = np.eye(shares.shape[1])[actual]
            of_classes = ((shares - flags) ** 2).sum(axis=1)
            squares.extend(of_classes / 2 if shares.shape[1] == 2 else of_classes)
        assert run.report[f"{prefix}brier"] == close(np.mean(squares))


def forget(tensors):
    """Set all tensors of an adapter to zero."""
    for tensor in tensors.values():
        tensor.zero_()


def test_what_is_scored_is_the_bank(copied):
    folder = copied("shops", rows=TABLE, entries=ENTRIES, adapter="lora", tenants=SHARED)
    before = read_json(folder / "reports/evaluate/metrics.json")
    edit(folder / "artifacts/adapter/adapter_model.safetensors", forget)
    run_stages(folder, "evaluate")
    assert read_json(folder / "reports/evaluate/metrics.json")["score"] == before["score"]


def test_another_run_writes_the_same_bank(copied):
    folder = copied("shops", rows=TABLE, entries=ENTRIES, adapter="lora", tenants=SHARED)
    before = digests(folder / "artifacts/bank")
    run_stages(folder, "train")
    assert digests(folder / "artifacts/bank") == before
