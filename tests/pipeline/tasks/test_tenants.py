"""Tenants in one data set: labels, splits, outputs, loss and scores of their own; what does not fit is one line."""

import hashlib

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from pipeline import tasks
from pipeline.data import datasets
from pipeline.tasks import Facts, Outcome
from pipeline.tasks.facts import Tenant
from tests.kit import refused, write
from tests.pipeline.data.rows import frames, row_of

OWN = {"column": "label"}
CUT = {"validation": 0.1, "test": 0.2}


def rows(name, labels, count, begin=0):
    """So many rows of a tenant, with its labels in turn."""
    texts = range(begin, begin + count)
    return [{"who": name, "text": f"text number {at}", "label": labels[at % len(labels)]} for at in texts]


BOTH = [*rows("bolt", ["x", "y", "z"], 60), *rows("acme", ["no", "yes"], 40, 100)]


def row(train, label=OWN, test=None, **settings):
    settings = {"split": CUT, "tenant": "who", "metrics": ["accuracy", "macro_f1"]} | settings
    files = {"train": train} if test is None else {"train": train, "test": test}
    return row_of({split: str(write(f"{split}.jsonl", its)) for split, its in files.items()}, label, **settings)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def load(*words, **settings):
    """The task of a row and its splits as tables."""
    its = row(*words, **settings)
    loaded = datasets.load(its, "mine")
    return loaded.task, frames(loaded), loaded


def test_each_tenant_has_the_labels_and_exact_shares_of_its_own_rows():
    task, splits, _ = load(BOTH)
    assert {name: its.labels for name, its in task.facts.tenants.items()} == {
        "acme": ("no", "yes"),
        "bolt": ("x", "y", "z"),
    }
    counts = {name: table.groupby(["tenant", "label"]).size().to_dict() for name, table in splits.items()}
    pairs = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    each = {"train": 14, "validation": 2, "test": 4}
    assert counts == {name: dict.fromkeys(pairs, count) for name, count in each.items()}
    assert task.head.fields() == {"num_labels": 5, "problem_type": "single_label_classification"}


def test_the_split_of_a_tenant_does_not_depend_on_the_others():
    _, together, _ = load(BOTH)
    _, alone, _ = load(rows("acme", ["no", "yes"], 40, 100))
    for name, table in alone.items():
        assert set(table["text"]) == set(together[name].query("tenant == 0")["text"])


def test_of_many_small_tenants_every_split_has_its_share_and_train_has_every_label():
    small = [one for at in range(200) for one in rows(f"t{at}", ["a", "b", "b", "c"], 5 + at % 3, 10 * at)]
    _, splits, _ = load(small)
    shares = {name: len(table) / len(small) for name, table in splits.items()}
    assert shares == pytest.approx({"train": 0.7, "validation": 0.1, "test": 0.2}, abs=0.05)
    assert splits["train"].groupby("tenant")["label"].nunique().eq(3).all()


def test_a_text_of_several_tenants_stays_with_each_and_is_trained_on_by_none_where_one_is_scored_on_it():
    same = [*rows("acme", ["no", "yes"], 40), *rows("bolt", ["yes", "no"], 41)]
    _, splits, loaded = load(same)
    held_out = set(splits["test"]["text"]) | set(splits["validation"]["text"])
    assert not held_out & set(splits["train"]["text"])
    assert splits["train"]["tenant"].nunique() == 2
    used = sum(map(len, splits.values()))
    assert loaded.dropped["duplicate"] == len(same) - used


FOUR = [
    one for at, name in enumerate(("acme", "bolt", "cast", "echo")) for one in rows(name, ["no", "yes"], 40, 50 * at)
]


def test_whole_tenants_are_held_out_by_the_hashes_of_their_names_and_the_others_are_split_as_without_them():
    task, splits, loaded = load(FOUR, held_out_tenants=0.25)
    by_hash = sorted(["acme", "bolt", "cast", "echo"], key=lambda name: hashlib.sha256(name.encode()).digest())
    assert by_hash[0] == "echo"
    assert (list(task.facts.tenants), list(task.facts.held_out)) == (["acme", "bolt", "cast"], ["echo"])
    assert set(splits.pop("held_out")["text"]) == {one["text"] for one in FOUR[120:]}
    assert task.head.fields()["num_labels"] == 6
    _, without, _ = load(FOUR[:120])
    for name, table in without.items():
        pd.testing.assert_frame_equal(table, splits[name])
    _, turned, _ = load(FOUR[::-1], held_out_tenants=0.25)
    assert set(turned["held_out"]["text"]) == {one["text"] for one in FOUR[120:]}
    assert sum(loaded.dropped.values()) == 0


def test_tenants_with_these_names_are_held_out():
    task, splits, _ = load(FOUR, held_out_tenants=["cast", "bolt"])
    assert (list(task.facts.tenants), list(task.facts.held_out)) == (["acme", "echo"], ["bolt", "cast"])
    apart = splits["held_out"]
    assert set(apart["text"]) == {one["text"] for one in FOUR[40:120]}
    assert set(apart[apart["tenant"] == 0]["text"]) == {one["text"] for one in FOUR[40:80]}


def test_held_out_tenants_are_taken_out_of_splits_of_the_source_too():
    task, splits, _ = load(FOUR[:150], test=FOUR[20:40] + FOUR[150:], split={"validation": 0.1}, held_out_tenants=0.25)
    assert set(splits["test"]["text"]) == {one["text"] for one in FOUR[20:40]}
    assert set(splits["held_out"]["text"]) == {one["text"] for one in FOUR[120:]}
    assert list(splits["held_out"]["tenant"]) == [0] * 40
    assert list(task.facts.held_out) == ["echo"]


def test_no_tenant_trains_on_a_text_of_a_held_out_one():
    shared = [one | {"who": "acme"} for one in FOUR[120:130]]
    _, splits, loaded = load(FOUR + shared, held_out_tenants=0.25)
    texts = {one["text"] for one in shared}
    assert texts <= set(splits["held_out"]["text"])
    assert not texts & set(splits["train"]["text"])
    kept = sum(map(len, splits.values()))
    assert loaded.dropped["duplicate"] == len(FOUR) + len(shared) - kept > 0


def test_numbers_and_common_names_are_labels_of_tenants_too():
    train, label = rows("a", [1, 2.5], 20) + rows("b", [3, 4], 20, 50), OWN | {"low": 0, "high": 5}
    task, splits, _ = load(train, label, metrics=["pearson"])
    assert (task.type.kind, task.head.fields()) == ("number", {"num_labels": 2, "problem_type": "regression"})
    assert splits["train"]["label"].dtype == float
    task, *_ = load(BOTH[60:], {"column": "label", "names": ["no", "perhaps", "yes"]})
    assert task.facts.tenants["acme"].labels == ("no", "perhaps", "yes")


MANY = [one for at in range(9) for one in rows(f"t{at}", ["no"], 5, 9 * at)]
NEEDED = "a tenant needs 5 texts and 2 different labels; "
XYZ, NUMBER = {"label": OWN | {"names": list("xyz")}}, {"label": OWN | {"low": 0, "high": 1}, "metrics": ["pearson"]}
TAGS = {"label": {"multi_label": "tags", "names": ["x", "y"]}, "metrics": ["micro_f1"]}
IN_TEST = {"split": {"validation": 0.1}, "test": rows("bolt", ["no", "yes"], 9)}
MISTAKES = [
    (rows("acme", ["no", "yes"], 4), {}, NEEDED + "acme has 4 and 2"),
    (rows("acme", ["no"], 9), {}, NEEDED + "acme has 9 and 1"),
    (MANY, {}, "t2 has 5 and 1 and 6 more tenants"),
    (
        rows("../x", ["no", "yes"], 9),
        {},
        "line 1: tenant '../x': a name of at most 100 characters is needed, without slashes",
    ),
    (
        rows("acme", ["no", "y" * 201], 9),
        {},
        "tenant acme: the list of its labels has 'yyyyyyyyyyyy...yyyyyyyyyyyyy' of 201 characters; at most 200",
    ),
    (BOTH, XYZ, "'no' is not a class of tenant acme: x, y, z"),
    (rows("acme", ["no", "yes"], 9), NUMBER, "'no' is not a finite number"),
    (rows("acme", ["no", "yes"], 9), IN_TEST, "tenant 'bolt' has no rows in train"),
    (BOTH, IN_TEST | {"test": rows("acme", ["x"], 9)}, "label 'x' is not a class of tenant acme: no, yes"),
    (
        FOUR,
        {"held_out_tenants": 0.1},
        "held_out_tenants: 0.1 of 4 tenants holds out 0 and leaves 4; needed: at least 1",
    ),
    (FOUR, {"held_out_tenants": ["dolt"]}, "no tenant 'dolt' in train: acme, bolt, cast, echo; did you mean bolt?"),
    (
        FOUR,
        {"held_out_tenants": 0.7},
        "held_out_tenants: 0.7 of 4 tenants holds out 3 and leaves 1; needed: at least 1",
    ),
]


@pytest.mark.parametrize(("train", "settings", "message"), MISTAKES)
def test_what_a_tenant_cannot_be_is_one_line(train, settings, message):
    refused(load, train, says=message, **settings)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"group": ["who"]}, "tenant: cannot be combined with group"),
        ({"stratify": True}, "tenant: cannot be combined with stratify"),
        ({"metrics": ["f1"]}, "use macro_f1"),
        ({"held_out_tenants": 0.2, "tenant": None} | TAGS, "held_out_tenants: needs a label of classes or of a number"),
        ({"held_out_tenants": 0.2, "tenant": None} | XYZ, "held_out_tenants: needs tenant, the column of tenants"),
        ({"held_out_tenants": []}, "held_out_tenants"),
        ({"held_out_tenants": ["a", "a"]}, "names must differ"),
        ({"held_out_tenants": 1.0}, "Input should be less than 1"),
    ],
)
def test_what_goes_with_no_tenants_is_refused(more, says):
    with pytest.raises(ValueError, match=says):
        row(BOTH, **more)


@pytest.fixture
def task():
    """A task of tenants with three and two labels, and a third as many rows of the first."""
    known = {"a": Tenant(labels=("x", "y", "z"), train=10), "b": Tenant(labels=("u", "v"), train=30)}
    return tasks.of(row(BOTH), Facts(tenants=known))


def test_the_loss_over_all_rows_is_the_mean_of_the_means_of_tenants(task):
    draws = torch.Generator().manual_seed(0)
    tenant = torch.tensor([0] * 10 + [1] * 30)
    logits, labels = torch.randn(40, 5, generator=draws), torch.randint(2, (40,), generator=draws)
    own = task.head.select_logits(logits, tenant=tenant)
    found = task.head.loss()(own, labels, tenant=tenant)
    means = [F.cross_entropy(logits[:10, :3], labels[:10]), F.cross_entropy(logits[10:, 3:], labels[10:])]
    torch.testing.assert_close(found, torch.stack(means).mean())


def many(count, texts, right, classes=2, metrics=("accuracy",)):
    """A task of so many tenants, and an outcome that is right where it is said to be, (tenants, texts)."""
    names = tuple("xyz"[:classes])
    its = row(BOTH, metrics=list(metrics))
    known = {f"t{number:05}": Tenant(labels=names, train=10) for number in range(count)}
    labels = np.random.default_rng(0).integers(classes, size=(count, texts))
    answers = np.where(right, labels, (labels + 1) % classes).ravel()
    outputs = torch.from_numpy(np.eye(classes)[answers])
    return tasks.of(its, Facts(tenants=known)), Outcome(outputs, labels.ravel(), np.repeat(np.arange(count), texts))


def test_tenants_that_agree_by_chance_do_not_make_their_mean_certain():
    """All have 20 of 20 right: the interval is no narrower than that of 160 of 160 texts."""
    task, outcome = many(8, 20, np.ones((8, 20), bool))
    whole, _ = task.scoring.parts(outcome, 100)
    assert whole["accuracy"] == whole["accuracy_high"] == 1
    assert whole["accuracy_low"] <= stats.binomtest(160, 160).proportion_ci(method="exact").low


@pytest.mark.parametrize("spread", [0.0, pytest.param(0.04, marks=pytest.mark.nightly)])
def test_the_interval_of_the_mean_covers_that_of_all_such_tenants(spread):
    """Each answers rightly with a probability of its own, 0.95 on average, on 20 texts."""
    draws, covered, trials = np.random.default_rng(0), 0, 80
    for _ in range(trials):
        shares = 0.95 + draws.choice([-spread, spread], size=(8, 1))
        task, outcome = many(8, 20, draws.random((8, 20)) < shares)
        whole, _ = task.scoring.parts(outcome, 100)
        covered += whole["accuracy_low"] <= 0.95 <= whole["accuracy_high"]
    assert covered / trials > 0.95 - 3 * np.sqrt(0.95 * 0.05 / trials)


def test_a_tenant_among_many_has_the_interval_that_it_has_alone():
    """All resamples are drawn for each, however many tenants there are."""
    right = np.random.default_rng(1).random((40, 12)) < 0.7
    task, outcome = many(40, 12, right, 3, ("macro_f1", "matthews_correlation"))
    whole, parts = task.scoring.parts(outcome, 2000)
    alone, _ = many(1, 12, right[:1], 3, ("macro_f1", "matthews_correlation"))
    first = Outcome(outcome.outputs[:12], outcome.labels[:12], outcome.groups[:12])
    expected, _ = alone.scoring.parts(first, 2000)
    for end in ("macro_f1_low", "macro_f1_high", "matthews_correlation_low", "matthews_correlation_high"):
        assert parts["t00000"][end] == expected[end]
    assert whole["tenants"] == 40


@pytest.mark.parametrize(
    ("scores", "lines"),
    [
        ({"acme": 0.5}, []),
        ({"acme": 0.5, "bolt": 0.75, "corp": 0.6}, [("best", "bolt 0.75"), ("worst", "acme 0.5")]),
        (
            {name: number / 10 for number, name in enumerate("abcdefgh")},
            [("best", "h 0.7, g 0.6, f 0.5"), ("worst", "a 0, b 0.1, c 0.2")],
        ),
    ],
)
def test_no_tenant_is_among_the_best_and_the_worst(scores, lines):
    task, *_ = load(BOTH)
    table = pd.DataFrame({"tenant": list(scores), "score": list(scores.values())})
    shown = list(
        task.description.results({"tenants": len(scores), "bank_bytes": 100 * len(scores)}, lambda path: table)
    )
    assert shown == [*lines, ("tenants", f"{len(scores)} of 100 bytes each in artifacts/bank")]
