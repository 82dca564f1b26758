"""Temperatures are the minima of the cross-entropy that scipy finds, and the limits hold where there is none."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from lsr_onnx import task
from pipeline.tasks.calibration import Classified, as_binary, fit_temperature, fit_temperatures


def drawn(classes, examples=400, factor=3.0, seed=0):
    """Logits that are `factor` times as far apart as the classes are sure, in float32, and classes."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(examples, classes))
    shares = softmax(logits, axis=1)
    numbers = np.array([random.choice(classes, p=row) for row in shares])
    return Classified((factor * logits).astype(np.float32), numbers)


def cross_entropy(parts, temperature):
    """Return the sum of the loss of each example, with one more example that has each class in equal shares."""
    count = sum(len(part.classes) for part in parts)
    total = 0.0
    for part in parts:
        shares = softmax(part.logits.astype(np.float64) / temperature, axis=1)
        for row, number in zip(shares, part.classes, strict=True):
            target = np.full(len(row), 1 / len(row) / (count + 1))
            target[number] += count / (count + 1)
            total -= target @ np.log(row)
    return total


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("factor", [0.4, 3.0])
def test_a_temperature_is_the_minimum_that_scipy_finds(classes, factor):
    part = drawn(classes, factor=factor)
    best = minimize_scalar(lambda log: cross_entropy([part], np.exp(log)), bounds=(-2, 2), method="bounded").x
    temperature = fit_temperature([part])
    assert temperature == pytest.approx(np.exp(best), rel=1e-3)
    assert abs(temperature / factor - 1) < 0.2
    before = log_loss(part.classes, softmax(part.logits, axis=1))
    after = log_loss(part.classes, softmax(part.logits / temperature, axis=1))
    assert after < before - 0.02


def test_of_many_examples_it_is_that_of_scikit_learn():
    random = np.random.default_rng(1)
    inputs = random.normal(size=(3000, 4))
    labels = (inputs[:, 0] + random.normal(size=3000) > 0).astype(int)
    classifier = LogisticRegression(C=100).fit(inputs[:40], labels[:40])
    classifier.coef_ *= 0.6
    calibrated = CalibratedClassifierCV(FrozenEstimator(classifier), method="temperature").fit(inputs, labels)
    temperature = fit_temperature([as_binary(classifier.decision_function(inputs), labels)])
    expected = calibrated.predict_proba(inputs)
    scaled = 1 / (1 + np.exp(-classifier.decision_function(inputs) / temperature))
    assert np.abs(scaled - expected[:, 1]).max() < 2e-3


def test_parts_with_other_classes_share_the_temperature_of_all_their_examples():
    parts = [drawn(2, 40), drawn(3, 30, seed=1), drawn(4, 500, 1.5, seed=2)]
    best = minimize_scalar(lambda log: cross_entropy(parts[:2], np.exp(log)), bounds=(-2, 2), method="bounded").x
    shared, same, own = fit_temperatures(parts)
    assert shared == same == pytest.approx(np.exp(best), rel=1e-3)
    assert own == fit_temperature(parts[2:])


def test_examples_without_a_mistake_have_a_finite_temperature_and_useless_ones_the_largest():
    logits = np.tile([[2.0, -2.0], [-2.0, 2.0]], (50, 1))
    right = np.tile([0, 1], 50)
    temperature = fit_temperature([Classified(logits, right)])
    assert softmax(logits[0] / temperature)[0] == pytest.approx(1 - 1 / 101 / 2, abs=1e-4)
    assert fit_temperature([Classified(logits, 1 - right)]) == task.MAX_TEMPERATURE
    assert fit_temperature([Classified(logits / 1000, right)]) == task.MIN_TEMPERATURE
    assert fit_temperatures([Classified(logits[:0], right[:0])]) == (1.0,)
