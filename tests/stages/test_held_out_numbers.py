"""Tenants of numbers that training has not seen; scores are those of plain transformers, scipy and scikit-learn."""

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler
from transformers import AutoTokenizer

from pipeline import summary
from pipeline.core import artifacts
from tests.kit import said
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
)
from tests.stages.running import report

pytestmark = pytest.mark.nightly  # it takes long, and its subject is about to go

TEXTS = {"acme": 40, "bolt": 40, "cast": 9, "dune": 40, "echo": 25, "gala": 22}
TRAINED = ["acme", "bolt", "dune"]
HELD_OUT = {"cast": 0, "echo": 10, "gala": 10}  # the most labels with which each is scored
COUNT = 10
# So that answers differ by more than single precision rounds them.
TRAINING = {"epochs": 10, "head_learning_rate": 0.05}
ROW = {
    "source": {"kind": "files", "files": {"train": "data/shops.csv"}},
    "split": {"validation": 0.2, "test": 0.25},
    "text": ["text"],
    "tenant": "shop",
    "label": {"column": "rating", "low": 0.0, "high": 4.0},
    "metrics": ["pearson"],
    "held_out_tenants": 0.5,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    rows = rows_of(TEXTS, "rating", lambda _, number: number % 9 / 2)
    return run_stages(
        tmp_path_factory.mktemp("held_out_numbers"), ROW, rows, train=TRAINING, lora={"learning_rate": 0.05}
    )


def correlation(answers, ratings, unseen):
    return stats.pearsonr(answers[unseen], ratings[unseen]).statistic


def test_without_labels_a_tenant_is_answered_by_the_mean_rows_of_the_trained_ones(world, monkeypatch):
    monkeypatch.chdir(world)
    model = plain.adapted(plain.base_model("tiny-roberta", num_labels=len(TRAINED)), artifacts.ADAPTER)
    means = []
    for name, most in HELD_OUT.items():
        texts, ratings = examples_of(name, HELD_OUT)
        numbers = plain.logits_alone(model, "tiny-roberta", [[text] for text in texts], LENGTH).mean(dim=1).numpy()
        means.append(np.mean([correlation(numbers, ratings, unseen) for _, unseen in draws(ratings, name, 0, most)]))
    found = report(artifacts.EVALUATE_METRICS)
    assert found["held_out_0_labels"] == pytest.approx(np.mean(means), abs=1e-4)
    assert (found["held_out_tenants"], found["held_out_scored"]) == (3, 3)
    assert found["held_out_0_labels_low"] < found["held_out_0_labels"] < found["held_out_0_labels_high"]
    assert "\nheld out    " in said(summary.main)


def test_the_regression_of_a_tenants_own_is_a_ridge_of_scikit_learn_on_the_frozen_encoder(world, monkeypatch):
    monkeypatch.chdir(world)
    candidates = [Ridge(alpha=1 / strength) for strength in STRENGTHS]
    means = []
    for name in ("echo", "gala"):
        texts, ratings = examples_of(name, HELD_OUT)
        features = frozen_features(texts)
        scores = []
        for known, unseen in draws(ratings, name, COUNT, COUNT):
            scaler = StandardScaler().fit(features[known])
            train = scaler.transform(features[known])
            fitted = fit_best(candidates, train, ratings[known], KFold(5), "neg_mean_squared_error")
            scores.append(correlation(fitted.predict(scaler.transform(features)), ratings, unseen))
        means.append(np.mean(scores))
    found = report(artifacts.EVALUATE_METRICS)
    assert found[f"held_out_{COUNT}_labels_regression"] == pytest.approx(np.mean(means), abs=1e-4)


@pytest.mark.nightly
def test_with_labels_a_tenant_is_answered_as_after_lsr_bank_fit(world, monkeypatch, tmp_path):
    monkeypatch.chdir(world)
    tokenizer = AutoTokenizer.from_pretrained("tiny-roberta")
    means = []
    for name in ("echo", "gala"):
        texts, ratings = examples_of(name, HELD_OUT)
        scores = []
        for draw, (known, unseen) in enumerate(draws(ratings, name, COUNT, COUNT)):
            bank = fit_bank(tmp_path / f"{name}{draw}", name, [texts[place] for place in known], ratings[known])
            answers = np.array([answer(bank, tokenizer, name, text) for text in texts])
            scores.append(correlation(answers, ratings, unseen))
        means.append(np.mean(scores))
    found = report(artifacts.EVALUATE_METRICS)
    assert found[f"held_out_{COUNT}_labels"] == pytest.approx(np.mean(means), abs=1e-4)


@torch.no_grad()
def answer(bank, tokenizer, name, text):
    return bank(**tokenizer(text, return_tensors="pt"), adapter_names=[name]).logits[0, 0].item()
