"""Means and intervals over seeds, and Holm's correction, against what they are defined by."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.compare.estimates import Estimate, difference, estimate, holm

PROBABILITIES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def test_one_seed_has_a_mean_and_no_interval_and_none_has_neither():
    assert estimate([0.8]) == Estimate(0.8, None, None, 1)
    assert estimate([]) == Estimate(None, None, None, 0)


def test_the_interval_is_students():
    values = [0.81, 0.84, 0.79, 0.86, 0.80]
    found = estimate(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.seeds == 5


def test_a_difference_is_of_the_seeds_that_both_have():
    found = difference({0: 3.0, 1: 5.0, 2: 9.0}, {0: 1.0, 1: 2.0, 7: 0.0})
    assert (found.mean, found.seeds) == (2.5, 2)
    assert difference({0: 3.0}, {1: 1.0}) == Estimate()


def test_holm_corrects_as_in_the_book():
    # 0.005 * 4; 0.01 * 3; 0.03 * 2; and 0.04, which is no smaller than the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(PROBABILITIES)
def test_holm_never_lowers_a_value_nor_changes_the_order(values):
    corrected = holm(values)
    assert all(0 <= p <= q <= 1 for p, q in zip(values, corrected, strict=True))
    assert all(np.diff(np.array(corrected)[np.argsort(values, kind="stable")]) >= 0)
    assert max(corrected) >= min(1, len(values) * min(values)) - 1e-12
