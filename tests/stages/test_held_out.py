"""Tenants that training has not seen: none of their texts reach it, and their scores are those of plain libraries."""

import hashlib
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import special
from sklearn import metrics
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler
from transformers import AutoTokenizer

from lsr.__main__ import main as lsr
from lsr.serve.bank import AdapterBank
from pipeline import held_out, summary
from pipeline.arena.unseen import answer_by_rows
from pipeline.core import artifacts
from pipeline.tasks import Facts
from pipeline.tasks.classes import ClassificationScoring
from pipeline.tasks.facts import Tenant
from tests import workspace
from tests.kit import said, table, write
from tests.pipeline.data.rows import row_of
from tests.references import plain
from tests.stages.held_out_runs import (
    LENGTH,
    STRENGTHS,
    draws,
    examples_of,
    fit_bank,
    fit_best,
    frozen_features,
    rows_of,
    run_stages,
    tokens,
)
from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN, report, run_in

pytestmark = pytest.mark.nightly  # it takes long, and its subject is about to go

NO_YES = ["no", "yes"]
LABELS = {"acme": NO_YES, "bolt": list("xyz"), "cast": NO_YES, "dune": NO_YES, "echo": NO_YES, "gala": list("abc")}
TEXTS = {"acme": 40, "bolt": 40, "cast": 9, "dune": 40, "echo": 25, "gala": 12}
TRAINED = ["acme", "bolt", "dune"]
HELD_OUT = ["cast", "echo", "gala"]  # the half whose names have the lowest hashes; nobody has the labels of gala
ROW = workspace.ROWS["shops"] | {"held_out_tenants": 0.5}


def rows():
    return rows_of(TEXTS, "label", lambda name, number: LABELS[name][number % len(LABELS[name])])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return run_stages(tmp_path_factory.mktemp("held_out"), ROW, rows())


def test_no_text_of_a_held_out_tenant_is_in_a_split_or_in_the_bank(world, monkeypatch):
    monkeypatch.chdir(world)
    by_hash = sorted(LABELS, key=lambda name: hashlib.sha256(name.encode()).digest())
    assert sorted(by_hash[:3]) == HELD_OUT
    for split in ("train", "validation", "test"):
        assert {text.rsplit(" ", 1)[1] for text in tokens(split)["text"]} == {*TRAINED}
    apart = tokens("held_out")
    names = apart["text"].str.rsplit(" ", n=1).str[1]
    assert names.value_counts().to_dict() == {name: TEXTS[name] for name in HELD_OUT}
    assert [HELD_OUT[number] for number in apart["tenant"]] == list(names)
    labels = [LABELS[name][label] for name, label in zip(names, apart["label"], strict=True)]
    given = {row["text"]: row["label"] for row in rows()}
    assert labels == [given[text] for text in apart["text"]]
    assert AdapterBank.load("tiny-roberta", artifacts.BANK).names == TRAINED
    shares = {row["part"]: int(row["rows"]) for row in table(artifacts.TOKENIZE_SPLITS)}
    assert shares["held_out"] == 46


def test_without_labels_a_tenant_is_answered_by_the_mean_rows_of_the_trained_ones(world, monkeypatch):
    monkeypatch.chdir(world)
    model = plain.adapted(plain.base_model("tiny-roberta", num_labels=7), artifacts.ADAPTER)
    means = {}
    for name, most in (("cast", 0), ("echo", 10)):
        texts, labels = examples_of(name, HELD_OUT)
        logits = plain.logits_alone(model, "tiny-roberta", [[text] for text in texts], LENGTH)
        answers = ((logits[:, :2] + logits[:, 5:]) / 2).argmax(dim=1).numpy()  # of acme and dune
        scores = [metrics.accuracy_score(labels[unseen], answers[unseen]) for _, unseen in draws(labels, name, 0, most)]
        means[name] = np.mean(scores)
    found = report(artifacts.EVALUATE_METRICS)
    assert found["held_out_0_labels"] == pytest.approx(np.mean([*means.values()]), abs=1e-5)
    assert (found["held_out_tenants"], found["held_out_scored"]) == (3, 2)
    assert found["held_out_0_labels_low"] < found["held_out_0_labels"] < found["held_out_0_labels_high"]


@pytest.mark.nightly
def test_with_labels_a_tenant_is_answered_as_after_lsr_bank_fit(world, monkeypatch, tmp_path):
    monkeypatch.chdir(world)
    texts, labels = examples_of("echo", HELD_OUT)
    tokenizer = AutoTokenizer.from_pretrained("tiny-roberta")
    scores = []
    for draw, (known, unseen) in enumerate(draws(labels, "echo", 10, 10)):
        few = [texts[place] for place in known]
        fitted = fit_bank(tmp_path / str(draw), "echo", few, [NO_YES[labels[place]] for place in known])
        right = [answer(fitted, tokenizer, "echo", texts[place]) == NO_YES[labels[place]] for place in unseen]
        scores.append(np.mean(right))
    assert report(artifacts.EVALUATE_METRICS)["held_out_10_labels"] == pytest.approx(np.mean(scores), abs=1e-5)


@torch.no_grad()
def answer(bank, tokenizer, name, text):
    logits = bank(**tokenizer(text, return_tensors="pt"), adapter_names=[name]).logits
    return bank.answers(logits, [name])[0].label


@pytest.mark.nightly
def test_where_heads_are_shared_a_tenant_without_labels_is_answered_as_after_lsr_bank_add(world, monkeypatch, tmp_path):
    shutil.copytree(world, tmp_path / "shared")
    monkeypatch.chdir(tmp_path / "shared")
    workspace.change(tenants={"head": "shared"})
    run_in(".", TRAIN, EVALUATE)
    names = ["echo", "cast"]
    words = ["bank", "--from", "artifacts/bank", "-o", "out", "--base", "tiny-roberta", "--add", *names]
    assert lsr([*words, "--labels", "no,yes"]) == 0
    bank = AdapterBank.load("tiny-roberta", "out")
    tokenizer = AutoTokenizer.from_pretrained("tiny-roberta")
    means = []
    for name, most in (("cast", 0), ("echo", 10)):
        texts, labels = examples_of(name, HELD_OUT)
        right = np.array([answer(bank, tokenizer, name, text) for text in texts]) == np.array(NO_YES)[labels]
        means.append(np.mean([right[unseen].mean() for _, unseen in draws(labels, name, 0, most)]))
    assert report(artifacts.EVALUATE_METRICS)["held_out_0_labels"] == pytest.approx(np.mean(means), abs=1e-5)


def test_the_regression_of_a_tenants_own_is_that_of_scikit_learn_on_the_frozen_encoder(world, monkeypatch):
    monkeypatch.chdir(world)
    texts, labels = examples_of("echo", HELD_OUT)
    features = frozen_features(texts)
    candidates = [LogisticRegression(C=strength, max_iter=1000) for strength in STRENGTHS]
    scores = []
    for known, unseen in draws(labels, "echo", 10, 10):
        scaler = StandardScaler().fit(features[known])
        train, test = scaler.transform(features[known]), scaler.transform(features[unseen])
        folds = StratifiedKFold(min(5, np.bincount(labels[known]).min()))
        fitted = fit_best(candidates, train, labels[known], folds, "neg_log_loss")
        scores.append(fitted.score(test, labels[unseen]))
    found = report(artifacts.EVALUATE_METRICS)
    assert found["held_out_10_labels_regression"] == pytest.approx(np.mean(scores), abs=1e-5)


def test_the_table_has_a_row_per_number_of_labels_and_method_and_dvc_shows_no_more_metrics(world, monkeypatch):
    monkeypatch.chdir(world)
    curve = pd.read_csv(artifacts.EVALUATE_HELD_OUT)
    methods = curve.groupby("labels")["method"].nunique().to_dict()
    assert methods == {0: 1, 5: 2, 10: 2}
    assert curve.groupby("labels")["tenants"].first().to_dict() == {0: 2, 5: 1, 10: 1}
    assert ((curve["low"] <= curve["score"]) & (curve["score"] <= curve["high"])).all()
    shown = artifacts.EVALUATE_METRICS.read_text(encoding="utf-8").partition('"details"')[0]
    assert "held_out" not in shown
    assert "\nheld out    " in said(summary.main)


def test_a_run_without_held_out_tenants_has_no_row_and_no_fact_of_them(world, tmp_path):
    folder = workspace.make(tmp_path, data="shops", adapter="lora")
    write(folder / "data/shops.csv", rows())
    write(folder / "data/datasets.yaml", {"shops": workspace.ROWS["shops"]})
    run_in(folder, TOKENIZE, FACTORIZE, TRAIN, EVALUATE)
    assert (folder / artifacts.EVALUATE_HELD_OUT).read_text() == "labels,method,score,low,high,tenants\n"
    assert set(report(folder / artifacts.TOKENS / "facts.json")) == {"tenants"}
    assert "held_out" not in (folder / artifacts.EVALUATE_METRICS).read_text()


def later(labels, start, features):
    row = row_of({"train": "a.csv"}, {"column": "label", "names": NO_YES}, split={"validation": 0.1, "test": 0.1})
    scoring = ClassificationScoring(row, Facts())
    return held_out.Later("acme", held_out.CLASSES, scoring, features, features, labels, start)


KNOWN = np.arange(60)
UNSEEN = np.arange(60, 200)


def share_right(tenant, logits):
    return (logits.argmax(axis=1) == tenant.labels[UNSEEN]).mean()


def test_a_fit_learns_a_question_that_differs_and_the_groups_rows_stay_where_they_are_right():
    features = np.random.default_rng(0).normal(size=(200, 6))
    random = np.random.default_rng(1).random(200)
    group = np.zeros((2, 7))
    group[1, 0] = 2
    labels = (random < special.expit(2 * features[:, 0])).astype(int)
    alike = later(labels, group, features)
    kept = held_out.predict_by_fit(alike, KNOWN, UNSEEN)
    np.testing.assert_allclose(kept[:, 1] - kept[:, 0], 2 * features[UNSEEN, 0], atol=1e-9)
    differs = later((features[:, 1] > 0).astype(int), group, features)
    assert share_right(differs, features[UNSEEN] @ group[:, :-1].T) < 0.6
    assert share_right(differs, held_out.predict_by_fit(differs, KNOWN, UNSEEN)) > 0.8
    assert share_right(differs, held_out.predict_by_regression(differs, KNOWN, UNSEEN)) > 0.8


def test_the_fit_of_a_head_without_a_bias_has_no_intercept():
    features = 1 + np.random.default_rng(0).normal(size=(200, 6))
    group = np.zeros((2, 6))
    tenant = later((features[:, 1] > features[:, 2]).astype(int), group, features)
    logits = held_out.predict_by_fit(tenant, KNOWN, UNSEEN)
    weight, *_ = np.linalg.lstsq(features[UNSEEN], logits)
    np.testing.assert_allclose(features[UNSEEN] @ weight, logits, atol=1e-9)
    assert share_right(tenant, logits) > 0.8
    asked = dict(held_out.answer(tenant, KNOWN[:0], UNSEEN))
    np.testing.assert_array_equal(asked[held_out.MODEL], np.zeros((140, 2)))
    in_the_arena = answer_by_rows(group)
    np.testing.assert_allclose(in_the_arena(features[KNOWN], tenant.labels[KNOWN], features[UNSEEN]), logits, atol=1e-6)


def test_where_all_labeled_texts_have_one_label_the_groups_rows_answer():
    features = np.random.default_rng(1).normal(size=(200, 3))
    group = np.array([[-1.0, 0, 0, 0], [1, 0, 0, 0]])
    single = later(np.zeros(200, int), group, features)
    answers = dict(held_out.answer(single, KNOWN, UNSEEN))
    np.testing.assert_allclose(answers[held_out.MODEL], features[UNSEEN] @ group[:, :-1].T, atol=1e-9)
    assert share_right(single, answers[held_out.REGRESSION]) == 1


def test_so_many_tenants_are_scored_that_a_run_stays_short(capsys):
    own = Tenant(labels=("no", "yes"), train=9)
    other = Tenant(labels=("no", "perhaps"), train=9)
    names = [f"t{number}" for number in range(25)]
    trained = {"acme": Tenant(labels=("yes", "no"), train=9)}
    facts = Facts(tenants=trained, held_out={**dict.fromkeys(names, own), "z": other})
    by_hash = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    assert held_out.choose_scored(facts) == by_hash[:16]
    printed = capsys.readouterr().out
    assert "1 of 26 held-out tenants are not scored, as no training tenant has their labels: z\n" in printed
    assert "of 25 held-out tenants, 16 are scored" in printed
