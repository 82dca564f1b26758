"""Labeled texts of a held-out tenant: draws with the shares of labels, and intervals that cover a known truth."""

from functools import cache

import numpy as np
import pytest
from scipy import stats

from pipeline.tasks import label_curve
from pipeline.tasks.label_curve import Scored


def test_a_draw_orders_all_texts_and_every_beginning_has_the_shares_of_the_labels():
    labels = np.repeat([0, 1, 2], [100, 60, 40])
    orders = [label_curve.order_texts(labels, "acme", draw) for draw in range(5)]
    for order in orders:
        assert sorted(order) == list(range(200))
        for count in (5, 10, 20, 60):
            expected = count * np.array([0.5, 0.3, 0.2])
            assert np.abs(np.bincount(labels[order[:count]], minlength=3) - expected).max() <= 2
    assert len({tuple(order[:10]) for order in orders}) == 5
    assert not np.array_equal(orders[0], label_curve.order_texts(labels, "bolt", 0))
    np.testing.assert_array_equal(orders[0], label_curve.order_texts(labels, "acme", 0))


def test_each_text_of_a_label_is_drawn_equally_often():
    labels = np.repeat([0, 1], [12, 8])
    drawn = np.zeros(20)
    draws = 600
    for draw in range(draws):
        drawn[label_curve.order_texts(labels, "acme", draw)[:5]] += 1
    for label in (0, 1):
        assert stats.chisquare(drawn[labels == label]).pvalue > 1e-3


@pytest.mark.parametrize(
    ("texts", "counts"), [(3, [0]), (10, [0, 5]), (119, [0, 5, 10, 20]), (120, [0, 5, 10, 20, 60])]
)
def test_at_least_half_of_the_texts_are_scored(texts, counts):
    assert label_curve.choose_counts(texts) == counts


def exact(score):
    """Return scores that other texts would not change."""
    values = np.array(score, float)
    return Scored(values, values, values)


def test_the_interval_is_students_of_the_means_of_tenants_where_these_differ_most():
    random = np.random.default_rng(0)
    scores = random.normal(0.7, 0.1, size=(6, 1)) + random.normal(0, 0.01, size=(6, 5))
    mean = label_curve.average("accuracy", [exact(row) for row in scores])
    expected = stats.ttest_1samp(scores.mean(axis=1), 0).confidence_interval(0.95)
    assert (mean.low, mean.high) == pytest.approx(expected)
    assert (mean.score, mean.tenants) == (pytest.approx(scores.mean()), 6)


def test_a_single_tenant_has_the_interval_of_its_draws_and_of_its_texts():
    values = np.array([0.6, 0.7, 0.65, 0.72, 0.68])
    of_draws = label_curve.average("accuracy", [exact(values)])
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (of_draws.low, of_draws.high) == pytest.approx(expected)
    of_texts = label_curve.average("accuracy", [Scored(np.full(5, 0.7), np.full(5, 0.6), np.full(5, 0.75))])
    assert (of_texts.low, of_texts.high) == pytest.approx((0.6, 0.75))


def test_ends_stay_within_the_range_of_the_metric():
    certain = label_curve.average("accuracy", [Scored(np.ones(5), np.full(5, 0.8), np.ones(5))] * 2)
    assert certain.high == 1
    opposite = label_curve.average("pearson", [exact([-0.9, -0.1, 0, 0, -1]), exact([-0.2, -1.0, 0, -1, -1])])
    assert -1 <= opposite.low < 0


SPREADS = [(0.0, 0.0), (0.05, 0.03), (0.0, 0.05)]  # standard deviations over tenants, and over draws


@pytest.mark.nightly
@pytest.mark.parametrize(("of_tenants", "of_draws"), SPREADS)
@pytest.mark.parametrize("tenants", [2, 6])
def test_the_interval_covers_the_score_of_all_such_tenants_and_draws(tenants, of_tenants, of_draws):
    """Each tenant has a probability of its own, 0.7 on average, which each draw changes, and 140 scored texts."""
    random = np.random.default_rng(0)
    trials = 400
    covered = 0
    for _ in range(trials):
        own = 0.7 + of_tenants * random.standard_normal((tenants, 1))
        shares = np.clip(own + of_draws * random.standard_normal((tenants, 5)), 0, 1)
        right = random.binomial(140, shares)
        mean = label_curve.average("accuracy", [scored(row) for row in right])
        covered += mean.low <= 0.7 <= mean.high
    assert covered / trials > 0.95 - 3 * np.sqrt(0.95 * 0.05 / trials)


@cache
def ends_of(count):
    return stats.binomtest(count, 140).proportion_ci(0.95, "exact")


def scored(right):
    ends = [ends_of(int(count)) for count in right]
    return Scored(right / 140, np.array([end.low for end in ends]), np.array([end.high for end in ends]))
