"""Scores on resamples are those of scikit-learn and scipy on the examples that were drawn."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.compare import bootstrap
from pipeline.tasks.scores import EXAMPLES

RESAMPLES = 6


@pytest.mark.parametrize("metric", [*bootstrap.OF_CLASSES, "pearson"])
@settings(max_examples=12)
@given(classes=st.integers(2, 4), examples=st.integers(3, 30), seed=st.integers(0, 1000))
def test_scores_are_those_of_the_examples_that_were_drawn(metric, classes, examples, seed):
    rng = np.random.default_rng(seed)
    labels, *predicted = rng.integers(0, 2 if metric == "f1" else classes, (4, examples)).astype(float)
    predicted.append(np.ones(examples))
    if metric == "pearson":
        predicted[0] += 1e4  # of which the variance is a small rest
    rows = np.random.default_rng(zlib.crc32(b"rte")).integers(examples, size=(RESAMPLES, examples))
    found = bootstrap.scores("rte", metric, labels, predicted, RESAMPLES)
    expected = [[EXAMPLES[metric](labels[row], one[row]) for row in rows] for one in predicted]
    assert found == pytest.approx(np.array(expected), abs=1e-6)
