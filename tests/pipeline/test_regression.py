"""The regression baseline of a run, and how much better the run is, are those of scikit-learn and scipy.

Features are means of the states of a plain encoder, of each text alone; what the run predicts is in its report.
"""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy import stats
from sklearn import metrics
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel, AutoTokenizer

from tests import reference, rows
from tests.helpers import change_params, read_json, read_table, run_stages

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10)
RESAMPLES = rows.SMALL["evaluate"]["resamples"]
LENGTH = rows.SMALL["tokenize"]["max_length"]
SPLITS = ("train", "validation", "test")
FEW = 10  # texts of a label, below which labels share a threshold
ROUNDED = 2e-3  # of correlations: the report has three digits of numbers
MAIN = {"two": "accuracy", "three": "macro_f1", "multi_label": "micro_f1", "number": "pearson"}


class Read(NamedTuple):
    """What a regression reads of a split."""

    texts: np.ndarray
    features: np.ndarray
    labels: np.ndarray
    shops: np.ndarray


def label_of(row, names, data):
    """Return the number, class number or flags of a row."""
    if data == "number":
        return row["rating"]
    if data == "multi_label":
        tags = row["tags"].split("|")
        return [int(name in tags) for name in names]
    column = {"two": "weather", "three": "size", "tenants": "answer"}[data]
    if data == "tenants":
        names = names[row["shop"]]
    return names.index(row[column])


@torch.no_grad()
def read_split(folder, split, data):
    """Return the features and labels of the texts of a split, in its order."""
    task = read_json(folder / "artifacts/adapter/task.json")
    names = task.get("tenants") or task["labels"]
    encoder = AutoModel.from_pretrained(folder / "models/bert", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "models/bert")
    known = {row["text"]: row for row in rows.examples()}
    texts = Dataset.from_file(str(folder / f"artifacts/tokens/{split}.arrow"))["text"][:]
    features = []
    for text in texts:
        states = encoder(**reference.encoded(tokenizer, (text,), LENGTH)).last_hidden_state
        features.append(states[0].double().mean(dim=0).numpy())
    labels = [label_of(known[text], names, data) for text in texts]
    shops = [known[text]["shop"] for text in texts]
    return Read(*map(np.array, (texts, features, labels, shops)))


def read_run(folder, data):
    """Return the report and what a regression reads of each split."""
    report = read_json(folder / "reports/evaluate/metrics.json")
    report |= report.pop("details")[0]
    return report, *(read_split(folder, split, data) for split in SPLITS)


def read_predictions(folder, texts, data):
    """Return what the run has predicted for texts."""
    names = read_json(folder / "artifacts/adapter/task.json")["labels"]
    table = read_table(folder / "reports/evaluate/predictions.csv")
    by_text = {row["text"]: row["predicted"] for row in table}
    cells = [by_text[text] for text in texts]
    if data == "number":
        return np.array(cells, float)
    if data == "multi_label":
        return np.array([[int(name in cell.split("; ")) for name in names] for cell in cells])
    return np.array([names.index(cell) for cell in cells])


def make_logistic(strength):
    return LogisticRegression(C=strength, max_iter=1000)


def make_several(strength):
    return OneVsRestClassifier(make_logistic(strength))


def make_ridge(strength):
    return Ridge(alpha=1 / strength)


def score_labels(estimator, features, labels):
    """Return the negative loss of probabilities of labels."""
    shares = estimator.predict_proba(features)
    return -metrics.log_loss(labels.ravel(), shares.ravel())


def fit(make, score, train, validation):
    """Return the regression, by its strength, with the best score on validation."""
    fitted = []
    for strength in STRENGTHS:
        estimator = make_pipeline(StandardScaler(), make(strength))
        fitted.append(estimator.fit(train.features, train.labels))
    return max(fitted, key=lambda estimator: score(estimator, validation.features, validation.labels))


def choose_thresholds(shares, labels):
    """Return for each label the threshold with the best F1, the middle one of ties; labels with few texts share one."""
    is_rare = labels.sum(axis=0) < FEW
    groups = [[at] for at in np.flatnonzero(~is_rare)]
    if is_rare.any():
        groups.append(np.flatnonzero(is_rare).tolist())
    tried = np.arange(1, 100) / 100
    thresholds = np.empty(len(is_rare))
    for group in groups:
        actual = labels[:, group].ravel()
        own = shares[:, group].ravel()
        scores = [metrics.f1_score(actual, own >= level, zero_division=0) for level in tried]
        ties = tried[np.array(scores) == max(scores)]
        thresholds[group] = ties[(len(ties) - 1) // 2]
    return thresholds


def predict(data, train, validation, test):
    """Return what the best regression says of test."""
    if data == "number":
        score = metrics.get_scorer("neg_mean_squared_error")
        return fit(make_ridge, score, train, validation).predict(test.features)
    if data != "multi_label":
        score = metrics.get_scorer("neg_log_loss")
        return fit(make_logistic, score, train, validation).predict(test.features)
    fitted = fit(make_several, score_labels, train, validation)
    thresholds = choose_thresholds(fitted.predict_proba(validation.features), validation.labels)
    return (fitted.predict_proba(test.features) >= thresholds).astype(int)


def check_difference(report, name, score, actual, predicted, rival):
    """Hold a difference of a score from a rival's, and its paired interval, to those of scipy."""

    def compare(actual, both):
        first, second = np.split(both, 2, axis=1)
        shape = actual.shape
        return score(actual, first.reshape(shape)) - score(actual, second.reshape(shape))

    both = np.column_stack([predicted, rival])
    ends = reference.bootstrap_interval(compare, actual, both, RESAMPLES)
    reported = report[f"{name}_low"], report[f"{name}_high"]
    assert report[name] == pytest.approx(compare(actual, both), abs=ROUNDED)
    assert reported == pytest.approx(ends, abs=ROUNDED)


@pytest.mark.parametrize("data", MAIN)
def test_the_regression_and_the_differences_from_it_are_those_of_scikit_learn_and_scipy(trained, data):
    folder = trained(data, "bert", adapter="lora")
    report, train, validation, test = read_run(folder, data)
    metric = MAIN[data]
    score = reference.SCORES[metric]
    regression = predict(data, train, validation, test)
    assert report["regression_examples"] == len(train.labels)
    assert report[f"{metric}_regression"] == pytest.approx(score(test.labels, regression), abs=1e-4)
    predicted = read_predictions(folder, test.texts, data)
    check_difference(report, f"{metric}_over_regression", score, test.labels, predicted, regression)


def test_the_best_constant_is_compared_on_the_same_texts(trained):
    folder = trained("three", "bert", adapter="lora")
    report, _, _, test = read_run(folder, "three")
    constant = np.full_like(test.labels, np.bincount(test.labels).argmax())
    predicted = read_predictions(folder, test.texts, "three")
    score = reference.SCORES["accuracy"]
    check_difference(report, "accuracy_over_baseline", score, test.labels, predicted, constant)


def select(read, shop):
    """Return the part of a split that is a tenant's."""
    own = read.shops == shop
    return Read(*(part[own] for part in read))


def test_each_tenant_has_a_regression_of_its_own(trained):
    folder = trained("tenants", "bert", adapter="lora")
    report, train, validation, test = read_run(folder, "tenants")
    answers = read_table(folder / "reports/evaluate/predictions.csv")
    accuracies = []
    differences = []
    for shop in rows.SHOPS:
        own = select(test, shop)
        regression = predict("tenants", select(train, shop), select(validation, shop), own)
        accuracies.append(np.mean(regression == own.labels))
        right = [row["predicted"] == row["actual"] for row in answers if row["tenant"] == shop]
        differences.append(np.mean(right) - accuracies[-1])
    assert report["accuracy_regression"] == pytest.approx(np.mean(accuracies), abs=1e-6)
    assert report["accuracy_over_regression"] == pytest.approx(np.mean(differences), abs=1e-6)
    ends = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert report["accuracy_over_regression_low"] <= ends.low + 1e-6
    assert report["accuracy_over_regression_high"] >= ends.high - 1e-6


def test_fewer_texts_for_the_regression_leave_the_other_figures_as_they_are(copied):
    folder = copied("two", "bert", adapter="lora")
    usual, *_ = read_run(folder, "two")
    change_params(folder, evaluate={"regression_baseline": 20})
    run_stages(folder, "evaluate")
    fewer, *_ = read_run(folder, "two")
    assert fewer["regression_examples"] == 20
    changed = {name for name in usual if usual[name] != fewer[name]}
    assert changed
    assert all("regression" in name for name in changed)
