"""Scores on resamples are those of scikit-learn and scipy on the examples that were drawn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.compare import resampling
from pipeline.evaluation.scores import EXAMPLES

RESAMPLES = 6


def drawn(examples, seed):
    return np.random.default_rng(seed).integers(examples, size=(RESAMPLES, examples))


@pytest.mark.parametrize("metric", [name for name in EXAMPLES if name not in ("pearson", "spearman")])
@settings(max_examples=12)
@given(classes=st.integers(2, 4), examples=st.integers(2, 30), seed=st.integers(0, 1000))
def test_of_classes(metric, classes, examples, seed):
    classes = 2 if metric == "f1" else classes
    rng = np.random.default_rng(seed)
    labels, *predicted = rng.integers(0, classes, (4, examples)).astype(float)
    found = resampling.scores(metric, labels, predicted, RESAMPLES, seed)
    rows = drawn(examples, seed)
    expected = [[EXAMPLES[metric](labels[row], one[row]) for row in rows] for one in predicted]
    assert found == pytest.approx(np.array(expected), abs=1e-9)


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
@settings(max_examples=12)
@given(examples=st.integers(3, 30), seed=st.integers(0, 1000), offset=st.sampled_from([0.0, 1e4]))
def test_of_numbers(metric, examples, seed, offset):
    rng = np.random.default_rng(seed)
    labels = np.round(rng.uniform(0, 5, examples), 1)
    predicted = [offset + labels + rng.normal(0, 1, examples), np.full(examples, 2.0)]
    found = resampling.scores(metric, labels, predicted, RESAMPLES, seed)
    expected = [[EXAMPLES[metric](labels[row], one[row]) for row in drawn(examples, seed)] for one in predicted]
    assert found == pytest.approx(np.array(expected), abs=1e-6)


def test_batches_and_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    labels, *predicted = rng.integers(0, 3, (6, 40)).astype(float)
    whole = resampling.scores("matthews_correlation", labels, predicted, 50, 1)
    monkeypatch.setattr(resampling, "WEIGHTS_AT_ONCE", 40 * 7)
    monkeypatch.setattr(resampling, "COLUMNS_AT_ONCE", 2 * 8 * 40)
    assert np.array_equal(whole, resampling.scores("matthews_correlation", labels, predicted, 50, 1))


def test_a_metric_of_groups_is_refused():
    with pytest.raises(ValueError, match=r"metric must be one of .*, got exact_match"):
        resampling.scores("exact_match", np.zeros(3), [np.zeros(3)], 10, 0)


def test_a_p_value_is_two_sided_and_never_zero():
    assert resampling.p_value(np.zeros(99)) == 1.0
    assert resampling.p_value(np.full(99, 0.1)) == resampling.p_value(np.full(99, -0.1)) == 0.02
    assert resampling.p_value(np.array([-1.0] * 5 + [1.0] * 94)) == pytest.approx(2 * 6 / 100)
