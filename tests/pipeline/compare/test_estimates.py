"""Means and intervals over seeds, and Holm's correction, against what they are defined by."""

import pytest

from pipeline.compare.estimates import Estimate, estimate, holm


def test_one_seed_has_a_mean_and_no_interval_and_none_has_neither():
    assert estimate([0.8]) == Estimate(0.8)
    assert estimate([]) == Estimate()


def test_the_interval_is_students():
    found = estimate([1.0, 2.0, 3.0])
    half = 4.302653 / 3**0.5  # t of two degrees of freedom, times the standard error
    assert (found.low, found.high) == (pytest.approx(2 - half), pytest.approx(2 + half))


def test_holm_corrects_as_in_the_book():
    # 0.005 * 4; 0.01 * 3; 0.03 * 2; and 0.04, which is no smaller than the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
