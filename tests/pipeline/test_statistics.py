"""Intervals cover a known truth as often as they say, and tests are those of scipy where these are the same.

A simulation needs thousands of intervals, so this file alone calls functions of the pipeline.
"""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.compare.differences import Comparator, Scores, holm, mean, on_task
from pipeline.tasks import scores
from tests import reference

TRIALS = 300
ERROR = np.sqrt(0.95 * 0.05 / TRIALS)  # standard error of how often 95 % intervals cover the truth
LEAST = 0.95 - 3 * ERROR
MOST = 0.95 + 3 * ERROR
RESAMPLES = 200
EXAMPLES = 100
MANY = 200_000  # examples whose score is the truth


def draw_classes(random, count):
    """Return classes, and two predictions that are right in three of four cases, and often both."""
    actual = random.choice(3, size=count, p=[0.5, 0.3, 0.2])
    easy = random.random(count)
    predicted = []
    for _ in range(2):
        is_right = 0.5 * easy + 0.5 * random.random(count) < 0.65
        predicted.append(np.where(is_right, actual, random.integers(0, 3, count)))
    return actual, *predicted


def draw_two(random, count):
    actual, *predicted = draw_classes(random, count)
    return (actual > 0).astype(int), *((one > 0).astype(int) for one in predicted)


def draw_labels(random, count):
    """Return flags of three labels, and two predictions."""
    actual = (random.random((count, 3)) < [0.5, 0.3, 0.2]).astype(int)
    flips = random.random((2, count, 3)) < 0.2
    return actual, *np.abs(actual - flips)


def draw_numbers(random, count):
    actual = random.normal(size=count)
    shared = random.normal(size=count)
    return actual, *(actual + shared + random.normal(size=(2, count)))


DRAWN = {
    "accuracy": draw_classes,
    "f1": draw_two,
    "macro_f1": draw_classes,
    "micro_f1": draw_labels,
    "matthews_correlation": draw_classes,
    "pearson": draw_numbers,
    "spearman": draw_numbers,
}


@pytest.mark.parametrize("metric", DRAWN)
def test_intervals_of_a_score_and_of_a_difference_cover_the_truth(metric):
    random = np.random.default_rng(0)
    actual, predicted, other = DRAWN[metric](random, MANY)
    truth = reference.SCORES[metric](actual, predicted)
    difference = truth - reference.SCORES[metric](actual, other)
    covered = []
    paired = []
    for _ in range(TRIALS):
        actual, predicted, other = DRAWN[metric](random, EXAMPLES)
        low, high = scores.interval(metric, predicted, actual, RESAMPLES)
        covered.append(low <= truth <= high)
        low, high = scores.difference(metric, predicted, other, actual, RESAMPLES)
        paired.append(low <= difference <= high)
    assert LEAST <= np.mean(covered) <= MOST
    assert LEAST <= np.mean(paired) <= MOST


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_a_difference_of_equal_predictions_is_certain_and_one_by_pairs_is_narrower(metric):
    random = np.random.default_rng(1)
    actual, predicted, other = draw_classes(random, EXAMPLES)
    assert scores.difference(metric, predicted, predicted, actual, RESAMPLES) == (0, 0)
    width = np.ptp(scores.difference(metric, predicted, other, actual, RESAMPLES))
    unpaired = np.hypot(*(np.ptp(scores.interval(metric, one, actual, RESAMPLES)) for one in (predicted, other)))
    assert width < unpaired


@pytest.mark.parametrize("metric", ["macro_f1", "micro_f1", "pearson", "spearman", "matthews_correlation"])
def test_the_order_of_examples_does_not_matter_and_groups_are_drawn_whole(metric):
    actual, predicted, _ = DRAWN[metric](np.random.default_rng(2), EXAMPLES)
    usual = scores.interval(metric, predicted, actual, RESAMPLES)
    order = np.lexsort((*np.atleast_2d(predicted.T), *np.atleast_2d(actual.T)))
    turned = order[::-1]
    assert scores.interval(metric, predicted[turned], actual[turned], RESAMPLES) == pytest.approx(usual)
    copies = np.repeat(order, 3)  # which say no more than one of them
    groups = np.repeat(np.arange(EXAMPLES), 3)
    grouped = scores.interval(metric, predicted[copies], actual[copies], RESAMPLES, groups)
    assert grouped == pytest.approx(usual)


def test_an_exact_match_is_a_group_without_a_mistake():
    actual = np.array([1, 0, 1, 0, 0, 1])
    predicted = np.array([1, 0, 1, 1, 0, 0])
    groups = np.array([7, 7, 2, 2, 2, 5])
    found = scores.score(["exact_match"], predicted, actual, groups)
    assert found == {"exact_match": pytest.approx(1 / 3)}
    ends = scores.interval("exact_match", predicted, actual, RESAMPLES, groups)
    assert ends == pytest.approx(reference.exact_interval(1, 3))
    assert scores.difference("exact_match", actual, 1 - actual, actual, RESAMPLES, groups) == (1, 1)


@pytest.mark.parametrize("metric", ["pearson", "spearman", "matthews_correlation"])
@pytest.mark.parametrize("sign", [1, -1])
def test_correlations_where_all_is_right_or_reversed_are_within_their_bounds(metric, sign):
    actual, *_ = DRAWN[metric](np.random.default_rng(3), EXAMPLES)
    actual = actual > 0 if metric == "matthews_correlation" else actual
    predicted = actual if sign > 0 else 1 - 3.7 * actual
    if metric == "matthews_correlation":
        predicted = actual == (sign > 0)
    low, high = scores.interval(metric, predicted.astype(float), actual.astype(float), RESAMPLES)
    assert -1 <= low <= high <= 1
    assert (low, high) == pytest.approx((sign, sign), abs=1e-9)


@pytest.mark.parametrize("factor", [1e-10, 1e10])
def test_the_interval_of_pearson_does_not_depend_on_units(factor):
    actual, predicted, _ = draw_numbers(np.random.default_rng(4), EXAMPLES)
    usual = scores.interval("pearson", predicted, actual, RESAMPLES)
    assert scores.interval("pearson", factor * predicted, actual, RESAMPLES) == pytest.approx(usual)
    nearly_constant = factor * (5 + 1e-15 * predicted)
    assert scores.interval("pearson", nearly_constant, actual, RESAMPLES) == (0, 0)


@pytest.mark.parametrize("spread", [0.0, 0.04, 0.15])
def test_the_interval_of_a_mean_over_tenants_covers_that_of_all_such_tenants(spread):
    """Each tenant has an accuracy of its own, around 0.8, on 30 texts."""
    random = np.random.default_rng(5)
    ends = np.array([reference.exact_interval(count, 30) for count in range(31)])
    covered = []
    for _ in range(TRIALS):
        shares = 0.8 + random.choice([-spread, spread], size=8)
        right = random.binomial(30, shares)
        low, high = scores.interval_of_mean(right / 30, *ends[right].T)
        covered.append(low <= 0.8 <= high)
    assert np.mean(covered) >= LEAST


def test_tenants_that_agree_by_chance_do_not_make_their_mean_certain():
    low, high = reference.exact_interval(20, 20)
    found, _ = scores.interval_of_mean(np.ones(8), np.full(8, low), np.full(8, high))
    assert found < reference.exact_interval(160, 160)[0]
    assert scores.interval_of_mean(np.ones(1), np.array([low]), np.array([high])) == (low, high)


class Design(NamedTuple):
    """How differences from a baseline come about, in points: sizes, and standard deviations of what is drawn."""

    seeds: int
    tenants: int = 1  # of a task, scored by one training run for each seed
    tasks: int = 1  # of an average, with runs of their own
    of_seeds: float = 0.0
    of_parts: float = 0.0  # how tenants differ, or the tasks of an average
    of_examples: float = 20.0  # for all seeds alike
    of_both: float = 15.0  # from seed to seed


DRAWS = 200
TESTED = 60  # examples


def weights_of(part):
    """Return how often each example is in each resample of a part, the same for all methods: (examples, resamples)."""
    drawn = np.random.default_rng(part).integers(TESTED, size=(DRAWS, TESTED))
    counts = [np.bincount(one, minlength=TESTED) for one in drawn]
    return np.stack(counts, axis=1) / TESTED


WEIGHTS = [weights_of(part) for part in range(8)]


def draw_comparison(design, random):
    """Return scores of a method and a baseline by task, tenant and seed, and the truth on these tasks and tenants."""
    by_task = {}
    truths = []
    for task in range(design.tasks):
        parts = random.normal(0, design.of_parts, (design.tenants, 1, 1))
        seeds = random.normal(0, design.of_seeds, (1, design.seeds, 1))
        examples = random.normal(0, design.of_examples, (design.tenants, 1, TESTED))
        rest = random.normal(0, design.of_both, (design.tenants, design.seeds, TESTED))
        truths.append(parts.mean())
        by_tenant = {}
        for tenant, differences in enumerate(parts + seeds + examples + rest):
            ours = {seed: Scores(one.mean(), one @ WEIGHTS[tenant]) for seed, one in enumerate(differences)}
            theirs = {seed: Scores(0.0, np.zeros(DRAWS)) for seed in ours}
            by_tenant[f"tenant {tenant}"] = {"ours": ours, "theirs": theirs}
        by_task[f"task {task}"] = by_tenant
    return by_task, np.mean(truths)


DESIGNS = [
    Design(5, of_seeds=3.0),
    Design(3, tenants=8, of_seeds=6.0),
    Design(3, tenants=4, of_seeds=4.0, of_parts=5.0),
    Design(3, tasks=4, of_seeds=2.0, of_parts=4.0),
]


@pytest.mark.parametrize("design", DESIGNS)
def test_differences_over_seeds_tenants_and_tasks_cover_the_truth(design):
    """The truth on new tasks or tenants is 0."""
    random = np.random.default_rng(6)
    these = []
    new = []
    for _ in range(TRIALS):
        by_task, truth = draw_comparison(design, random)
        found = Comparator(by_task, {"all": tuple(by_task)}, margin=1.0).versus("theirs", "all", ["ours"])["ours"]
        these.append(found["these"]["low"] <= truth <= found["these"]["high"])
        if design.tenants * design.tasks > 1:
            new.append(found["new"]["low"] <= 0 <= found["new"]["high"])
            assert found["new"]["low"] <= found["these"]["low"]
            assert found["these"]["high"] <= found["new"]["high"]
    assert np.mean(these) >= LEAST
    if new:
        assert np.mean(new) >= LEAST


def by_seed(values):
    """Return scores of seeds without labels."""
    return {seed: Scores(value, np.full(9, value)) for seed, value in enumerate(values)}


@pytest.mark.parametrize("tenants", [1, 4])
def test_without_labels_a_difference_has_the_paired_test_of_student_over_seeds(tenants):
    ours, theirs = np.random.default_rng(7).normal(80, 1, (2, tenants, 5))
    parts = [(by_seed(mine), by_seed(other)) for mine, other in zip(ours, theirs, strict=True)]
    found = on_task(parts)
    expected = stats.ttest_rel(ours.mean(axis=0), theirs.mean(axis=0))
    assert found.p() == pytest.approx(expected.pvalue)
    assert found.interval(0.9) == pytest.approx(tuple(expected.confidence_interval(0.9)))


def test_seeds_are_paired_and_one_in_common_says_nothing_of_the_error():
    found = on_task([(by_seed([3.0, 5.0, 9.0]), {0: Scores(5.0, np.full(9, 5.0))})])
    assert found.mean == -2
    assert np.isnan([found.p(), *found.interval(0.95)]).all()


def test_on_new_tasks_a_difference_has_the_test_of_student_over_tasks():
    random = np.random.default_rng(8)
    differences = random.normal(2, 9, 6)
    tasks = [on_task([(by_seed(one + random.normal(0, 0.1, 5)), by_seed(np.zeros(5)))]) for one in differences]
    found = mean(tasks)
    expected = stats.ttest_1samp([task.mean for task in tasks], 0)
    assert found.p("new") == pytest.approx(expected.pvalue)
    assert found.interval(0.95, "new") == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_a_mean_over_two_tasks_has_the_interval_of_welch():
    random = np.random.default_rng(9)
    first = random.normal(1, 3, 5)
    second = random.normal(2, 0.5, 3)
    found = mean([on_task([(by_seed(one), by_seed(np.zeros(len(one))))]) for one in (first, second)])
    expected = stats.ttest_ind(first, -second, equal_var=False).confidence_interval(0.95)
    assert found.interval(0.95) == pytest.approx((expected.low / 2, expected.high / 2))


@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_multiplies_each_p_value_by_how_many_are_no_smaller(values):
    found = holm(values)
    highest = 0.0
    for rank, place in enumerate(np.argsort(values, kind="stable")):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        assert found[place] == pytest.approx(highest)
