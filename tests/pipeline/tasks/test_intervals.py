"""Intervals: exact where a score counts, else percentiles of a bootstrap, over whole groups where there are any."""

import numpy as np
import pytest
from hypothesis import given
from scipy import stats

from pipeline.tasks import scores
from pipeline.tasks.intervals import intervals, share
from tests.pipeline.tasks.samples import OF_NUMBERS, class_pairs, noisy_numbers, two_classes


def sample(name, rows):
    return noisy_numbers(rows) if name in OF_NUMBERS else two_classes(rows)


@given(class_pairs(most=2))
def test_an_exact_interval_contains_its_score(pair):
    found, expected = intervals(["accuracy", "f1"], *pair, 100), scores.score(["accuracy", "f1"], *pair)
    for name, (low, high) in found.items():
        assert 0 <= low <= expected[name] <= high <= 1


@pytest.mark.parametrize(
    ("count", "of", "expected"),
    [
        (66, 66, (0.025 ** (1 / 66), 1.0)),  # the closed forms of no mistake and of no hit
        (0, 20, (0.0, 1 - 0.025 ** (1 / 20))),
        (8, 10, (0.44390, 0.97479)),  # as published tables have it
        (0, 0, (0.0, 1.0)),
    ],
)
def test_a_share_has_the_interval_of_clopper_and_pearson(count, of, expected):
    assert share(count, of) == pytest.approx(expected, abs=1e-5)


def test_the_ends_of_f1_are_those_of_the_share_of_hits_among_what_is_not_rightly_left_aside():
    labels, predictions = np.array([1] * 10 + [0] * 90), np.array([1] * 8 + [0] * 2 + [1] * 4 + [0] * 86)
    low, high = intervals(["f1"], predictions, labels, 100)["f1"]
    hits = stats.binomtest(8, 14).proportion_ci(method="exact")  # 8 hits, 2 misses, 4 false alarms
    assert (low, high) == pytest.approx((2 * hits.low / (1 + hits.low), 2 * hits.high / (1 + hits.high)))


@pytest.mark.parametrize("name", ["macro_f1", *OF_NUMBERS])
def test_a_bootstrap_has_the_percentiles_of_scores_of_resamples(name):
    predictions, labels = sample(name, 120)
    random = np.random.default_rng(1)
    drawn = [random.integers(120, size=120) for _ in range(400)]
    found = [scores.score([name], predictions[rows], labels[rows])[name] for rows in drawn]
    low, high = np.percentile(found, [2.5, 97.5])
    # Two independent runs: the ends differ by their Monte-Carlo error, far less than the width.
    assert intervals([name], predictions, labels, 400)[name] == pytest.approx((low, high), abs=0.25 * (high - low))


def test_groups_are_drawn_whole():
    # Four copies of each example in a group say no more than one of it.
    predictions, labels = noisy_numbers(60)
    copied = [np.repeat(values, 4) for values in (predictions, labels, np.arange(60))]
    grouped = intervals(["pearson"], *copied[:2], 400, copied[2])["pearson"]
    alone = intervals(["pearson"], *copied[:2], 400)["pearson"]
    assert np.ptp(grouped) == pytest.approx(2 * np.ptp(alone), rel=0.25)
