"""Scores on resamples are those of scikit-learn and scipy on the examples that were drawn."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.compare import bootstrap
from pipeline.tasks.scores import EXAMPLES

RESAMPLES = 6


def drawn(examples):
    return np.random.default_rng(zlib.crc32(b"rte")).integers(examples, size=(RESAMPLES, examples))


@pytest.mark.parametrize("metric", list(bootstrap.OF_CLASSES))
@settings(max_examples=12)
@given(classes=st.integers(2, 4), examples=st.integers(2, 30), seed=st.integers(0, 1000))
def test_of_classes(metric, classes, examples, seed):
    classes = 2 if metric == "f1" else classes
    rng = np.random.default_rng(seed)
    labels, *predicted = rng.integers(0, classes, (4, examples)).astype(float)
    found = bootstrap.scores("rte", metric, labels, predicted, RESAMPLES)
    rows = drawn(examples)
    expected = [[EXAMPLES[metric](labels[row], one[row]) for row in rows] for one in predicted]
    assert found == pytest.approx(np.array(expected), abs=1e-9)


@settings(max_examples=12)
@given(examples=st.integers(3, 30), seed=st.integers(0, 1000), offset=st.sampled_from([0.0, 1e4]))
def test_of_numbers(examples, seed, offset):
    rng = np.random.default_rng(seed)
    labels = np.round(rng.uniform(0, 5, examples), 1)
    predicted = [offset + labels + rng.normal(0, 1, examples), np.full(examples, 2.0)]
    found = bootstrap.scores("rte", "pearson", labels, predicted, RESAMPLES)
    expected = [[EXAMPLES["pearson"](labels[row], one[row]) for row in drawn(examples)] for one in predicted]
    assert found == pytest.approx(np.array(expected), abs=1e-6)
