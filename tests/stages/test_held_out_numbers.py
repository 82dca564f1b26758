"""Tenants of numbers that training has not seen; scores are those of plain transformers, scipy and scikit-learn."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy import stats
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold, cross_val_score
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel, AutoTokenizer

from lsr.__main__ import main as lsr
from lsr.serve.bank import AdapterBank
from pipeline import summary
from pipeline.core import artifacts
from pipeline.tasks import label_curve
from tests import workspace
from tests.kit import said, write
from tests.references import plain
from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN, report, run_in

TEXTS = {"acme": 40, "bolt": 40, "cast": 9, "dune": 40, "echo": 25, "gala": 22}
TRAINED = ["acme", "bolt", "dune"]
HELD_OUT = {"cast": 0, "echo": 10, "gala": 10}  # the most labels with which each is scored
COUNT = 10
LENGTH = 24  # tokens
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10)
ROW = {
    "source": {"kind": "files", "files": {"train": "data/shops.csv"}},
    "split": {"validation": 0.2, "test": 0.25},
    "text": ["text"],
    "tenant": "shop",
    "label": {"column": "rating", "low": 0.0, "high": 4.0},
    "metrics": ["pearson"],
    "held_out_tenants": 0.5,
}


def rows():
    pairs = workspace.sentences(60)
    made = []
    for name, count in TEXTS.items():
        for number in range(count):
            text = f"{pairs[number][number % 2]} {name}"
            made.append({"shop": name, "text": text, "rating": number % 9 / 2})
    return made


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A workspace in which all stages have run, with heads of each tenant's own, whose mean is that of the group."""
    folder = workspace.make(
        tmp_path_factory.mktemp("held_out_numbers"),
        data="shops",
        adapter="lora",
        tenants={"shared_adapter": "trained", "head": "own", "precision": "float32"},
        train={"epochs": 2, "head_learning_rate": 0.01},
    )
    write(folder / "data/shops.csv", rows())
    write(folder / "data/datasets.yaml", {"shops": ROW})
    return run_in(folder, TOKENIZE, FACTORIZE, TRAIN, EVALUATE)


def examples_of(name):
    """Return the texts of a held-out tenant and their ratings, in the order of their hashes."""
    examples = Dataset.from_file(str(artifacts.tokens("held_out"))).to_pandas()
    own = examples[examples["tenant"] == list(HELD_OUT).index(name)]
    return list(own["text"]), own["label"].to_numpy()


def draws(name, count):
    """Yield the positions of the labeled and of the scored texts in each draw."""
    _, ratings = examples_of(name)
    for draw in range(5):
        order = label_curve.order_texts(ratings, name, draw)
        yield order[:count], order[HELD_OUT[name] :]


def correlation(answers, ratings, unseen):
    return stats.pearsonr(answers[unseen], ratings[unseen]).statistic


def test_without_labels_a_tenant_is_answered_by_the_mean_rows_of_the_trained_ones(world, monkeypatch):
    monkeypatch.chdir(world)
    model = plain.adapted(plain.base_model("tiny-roberta", num_labels=len(TRAINED)), artifacts.ADAPTER)
    means = []
    for name in HELD_OUT:
        texts, ratings = examples_of(name)
        numbers = plain.logits_alone(model, "tiny-roberta", [[text] for text in texts], LENGTH).mean(dim=1).numpy()
        means.append(np.mean([correlation(numbers, ratings, unseen) for _, unseen in draws(name, 0)]))
    found = report(artifacts.EVALUATE_METRICS)
    assert found["held_out_0_labels"] == pytest.approx(np.mean(means), abs=1e-4)
    assert (found["held_out_tenants"], found["held_out_scored"]) == (3, 3)
    assert found["held_out_0_labels_low"] < found["held_out_0_labels"] < found["held_out_0_labels_high"]
    assert "\nheld out    " in said(summary.main)


def test_the_regression_of_a_tenants_own_is_a_ridge_of_scikit_learn_on_the_frozen_encoder(world, monkeypatch):
    monkeypatch.chdir(world)
    encoder = AutoModel.from_pretrained("tiny-roberta", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained("tiny-roberta")
    means = []
    for name in ("echo", "gala"):
        texts, ratings = examples_of(name)
        with torch.no_grad():
            encoded = [plain.encoded(tokenizer, [text], LENGTH) for text in texts]
            states = [encoder(**inputs).last_hidden_state[0].mean(0) for inputs in encoded]
        features = torch.stack(states).double().numpy()
        scores = []
        for known, unseen in draws(name, COUNT):
            scaler = StandardScaler().fit(features[known])
            fitted = fit_best(scaler.transform(features[known]), ratings[known])
            scores.append(correlation(fitted.predict(scaler.transform(features)), ratings, unseen))
        means.append(np.mean(scores))
    found = report(artifacts.EVALUATE_METRICS)
    assert found[f"held_out_{COUNT}_labels_regression"] == pytest.approx(np.mean(means), abs=1e-4)


def fit_best(features, ratings):
    """Return the ridge regression with the least squared error by cross-validation over five folds."""
    candidates = [Ridge(alpha=1 / strength) for strength in STRENGTHS]
    losses = []
    for candidate in candidates:
        gains = cross_val_score(candidate, features, ratings, cv=KFold(5), scoring="neg_mean_squared_error")
        losses.append(-gains.mean())
    return candidates[int(np.argmin(losses))].fit(features, ratings)


@pytest.mark.nightly
def test_with_labels_a_tenant_is_answered_as_after_lsr_bank_fit(world, monkeypatch, tmp_path):
    monkeypatch.chdir(world)
    tokenizer = AutoTokenizer.from_pretrained("tiny-roberta")
    means = []
    for name in ("echo", "gala"):
        texts, ratings = examples_of(name)
        scores = []
        for draw, (known, unseen) in enumerate(draws(name, COUNT)):
            few = [{"text": texts[place], "label": ratings[place]} for place in known]
            file = write(tmp_path / f"{name}{draw}.csv", few)
            folder = tmp_path / f"{name}{draw}"
            words = ["bank", "--from", "artifacts/bank", "-o", str(folder), "--base", "tiny-roberta"]
            assert lsr([*words, "--fit", f"{name}={file}"]) == 0
            bank = AdapterBank.load("tiny-roberta", folder)
            answers = np.array([answer(bank, tokenizer, name, text) for text in texts])
            scores.append(correlation(answers, ratings, unseen))
        means.append(np.mean(scores))
    found = report(artifacts.EVALUATE_METRICS)
    assert found[f"held_out_{COUNT}_labels"] == pytest.approx(np.mean(means), abs=1e-4)


@torch.no_grad()
def answer(bank, tokenizer, name, text):
    return bank(**tokenizer(text, return_tensors="pt"), adapter_names=[name]).logits[0, 0].item()
