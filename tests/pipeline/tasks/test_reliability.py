"""Errors of probabilities are those of scikit-learn and of a slow sum over bins, before and after calibration."""

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from pipeline import tasks
from pipeline.params.dataset_entry import DatasetEntry
from pipeline.tasks import Facts, Outcome, reliability, scores
from pipeline.tasks.facts import Tenant
from tests import workspace
from tests.pipeline.tasks import references

SOURCE = {
    "source": {"kind": "files", "files": {"train": "any.csv"}},
    "text": ["text"],
    "split": {"validation": 0.2, "test": 0.2},
}
CLASSES = SOURCE | {"label": {"column": "label", "names": ["a", "b", "c"]}, "metrics": ["accuracy"]}
TWO = SOURCE | {"label": {"column": "label", "names": ["a", "b"]}, "metrics": ["accuracy"]}


def outcome_of(classes, examples=180, seed=0):
    random = np.random.default_rng(seed)
    outputs = 2 * random.normal(size=(examples, classes)).astype(np.float32)
    labels = np.array([random.choice(classes, p=row) for row in softmax(outputs / 2, axis=1)])
    return Outcome(torch.from_numpy(outputs), labels)


def report(row, outcome, temperatures, facts=None):
    task = tasks.of(DatasetEntry.model_validate(row), facts or Facts())
    return reliability.report(task.with_fitted(temperatures=temperatures), outcome, references.RESAMPLES)


def slow_error(right, probabilities):
    """Return the mean over all answers of the distance between probability and frequency in 15 bins, bin by bin."""
    right = np.ravel(right)
    probabilities = np.ravel(probabilities)
    error = 0.0
    for number in range(15):
        top = 1.1 if number == 14 else (number + 1) / 15
        inside = [at for at, value in enumerate(probabilities) if number / 15 <= value < top]
        if inside:
            distance = np.mean([right[at] for at in inside]) - np.mean([probabilities[at] for at in inside])
            error += len(inside) / len(right) * abs(distance)
    return error


def check(metrics, right, probabilities, squares, prefix=""):
    assert metrics[f"{prefix}ece"] == pytest.approx(slow_error(right, probabilities), abs=1e-12)
    assert metrics[f"{prefix}brier"] == pytest.approx(np.mean(squares), abs=1e-12)
    for name, score, values in (("ece", slow_error, probabilities), ("brier", lambda _, drawn: drawn.mean(), squares)):
        ends = metrics[f"{prefix}{name}_low"], metrics[f"{prefix}{name}_high"]
        low, high = references.resampled(score, right, values)
        if name == "ece":  # the basic bootstrap's
            error = metrics[f"{prefix}ece"]
            low, high = max(0, 2 * error - high), max(error, 2 * error - low)
        assert ends == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize(("row", "classes"), [(TWO, 2), (CLASSES, 3)])
def test_errors_of_classes_are_those_of_the_likeliest_one(row, classes):
    outcome = outcome_of(classes)
    found = report(row, outcome, (1.5,))
    for prefix, temperature in (("", 1.0), ("uncalibrated_", 1.5)):
        shares = softmax(temperature * outcome.outputs.double().numpy(), axis=1)
        right = (shares.argmax(axis=1) == outcome.labels).astype(int)
        squares = ((shares - np.eye(classes)[outcome.labels]) ** 2).sum(axis=1) / (2 if classes == 2 else 1)
        check(found.metrics, right, shares.max(axis=1), squares, prefix)
        official = shares[:, 1] if classes == 2 else shares
        assert found.metrics[f"{prefix}brier"] == pytest.approx(brier_score_loss(outcome.labels, official), abs=1e-12)
    frequencies, means = calibration_curve(right, shares.max(axis=1), n_bins=15)
    rows = [row for row in found.reliability if row[3] == "uncalibrated"]
    assert [(mean, frequency) for mean, frequency, *_ in rows] == [
        (pytest.approx(mean), pytest.approx(frequency)) for mean, frequency in zip(means, frequencies, strict=True)
    ]
    assert sum(count for _, _, count, _ in rows) == len(right)


def test_errors_of_multi_label_are_of_each_label_and_resample_texts():
    row = workspace.ROWS["animals"]
    random = np.random.default_rng(3)
    outputs = torch.from_numpy(2 * random.normal(size=(120, 3)).astype(np.float32))
    labels = (random.random((120, 3)) < 0.4).astype(float)
    found = report(row, Outcome(outputs, labels), (1.5, 0.5, 2.0))
    for prefix, temperatures in (("", [1.0] * 3), ("uncalibrated_", [1.5, 0.5, 2.0])):
        shares = expit(outputs.double().numpy() * temperatures)
        check(found.metrics, labels.astype(int), shares, ((shares - labels) ** 2).mean(axis=1), prefix)
        each = [brier_score_loss(labels[:, at], shares[:, at]) for at in range(3)]
        assert found.metrics[f"{prefix}brier"] == pytest.approx(np.mean(each), abs=1e-12)
    assert found.coverage == []


def test_of_tenants_all_texts_count_and_of_numbers_nothing_is_reported():
    tenants = {"x": Tenant(labels=("a", "b"), train=9), "y": Tenant(labels=("a", "b", "c"), train=9)}
    first, second = outcome_of(2, 70), outcome_of(3, 50, seed=1)
    beyond = torch.full((70, 1), torch.finfo(torch.float32).min)
    outputs = torch.cat([torch.cat([first.outputs, beyond], dim=1), second.outputs])
    labels = np.concatenate([first.labels, second.labels])
    outcome = Outcome(outputs, labels, np.repeat([0, 1], [70, 50]))
    found = report(workspace.ROWS["shops"], outcome, (1.5, 2.0), Facts(tenants=tenants))
    shares = [softmax(factor * one.outputs.double().numpy(), axis=1) for factor, one in ((1.5, first), (2.0, second))]
    right = np.concatenate([shares[0].argmax(1) == first.labels, shares[1].argmax(1) == second.labels]).astype(int)
    confidence = np.concatenate([own.max(axis=1) for own in shares])
    assert found.metrics["uncalibrated_ece"] == pytest.approx(slow_error(right, confidence), abs=1e-12)
    assert report(workspace.ROWS["ratings"], outcome, None) == ({}, [], [])


def draw_answers(random, count, sharpness):
    """Return probabilities that are too high, and whether the answers are right."""
    leads = np.abs(random.normal(1.5, 1.2, count))
    return expit(sharpness * leads), (random.random(count) < expit(leads)).astype(int)


@pytest.mark.parametrize(("count", "sharpness", "least"), [(400, 1.15, 0.8), (400, 1.5, 0.85), (100, 3.0, 0.85)])
def test_the_interval_of_a_calibration_error_covers_that_of_all_such_texts(count, sharpness, least):
    random = np.random.default_rng(0)
    probabilities, right = draw_answers(random, 1_000_000, sharpness)
    truth = scores.EXAMPLES["ece"](right, probabilities)
    covered = []
    for _ in range(200):
        probabilities, right = draw_answers(random, count, sharpness)
        low, high = scores.interval("ece", probabilities, right, 200)
        assert low <= scores.EXAMPLES["ece"](right, probabilities) <= high
        covered.append(low <= truth <= high)
    assert np.mean(covered) > least


def test_coverage_is_the_share_of_texts_with_a_probability_and_accuracy_that_of_right_ones_among_them():
    outcome = outcome_of(3)
    rows = report(CLASSES, outcome, (1.0,)).coverage
    shares = softmax(outcome.outputs.double().numpy(), axis=1)
    confidence = shares.max(axis=1)
    right = shares.argmax(axis=1) == outcome.labels
    assert len(rows) == 100
    assert rows[-1][0] == 1
    assert rows[-1][1] == pytest.approx(right.mean())
    for share, accuracy, least in rows:
        assert share == pytest.approx(np.mean(confidence >= least))
        assert accuracy == pytest.approx(right[confidence >= least].mean())
