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
from pipeline.tasks.scores import difference, interval, interval_of_mean, score
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
    gain = truth - reference.SCORES[metric](actual, other)
    covered = []
    paired = []
    for _ in range(TRIALS):
        actual, predicted, other = DRAWN[metric](random, EXAMPLES)
        low, high = interval(metric, predicted, actual, RESAMPLES)
        covered.append(low <= truth <= high)
        low, high = difference(metric, predicted, other, actual, RESAMPLES)
        paired.append(low <= gain <= high)
    assert LEAST <= np.mean(covered) <= MOST
    assert LEAST <= np.mean(paired) <= MOST


def test_a_difference_of_equal_predictions_is_certain():
    actual, predicted, _ = draw_classes(np.random.default_rng(1), EXAMPLES)
    assert difference("macro_f1", predicted, predicted, actual, RESAMPLES) == (0, 0)


@pytest.mark.parametrize("metric", ["macro_f1", "micro_f1", "pearson", "spearman", "matthews_correlation"])
def test_the_order_of_examples_does_not_matter_and_groups_are_drawn_whole(metric):
    actual, predicted, _ = DRAWN[metric](np.random.default_rng(2), EXAMPLES)
    usual = interval(metric, predicted, actual, RESAMPLES)
    order = np.lexsort((*np.atleast_2d(predicted.T), *np.atleast_2d(actual.T)))
    turned = order[::-1]
    of_turned = interval(metric, predicted[turned], actual[turned], RESAMPLES)
    assert of_turned == pytest.approx(usual)
    copies = np.repeat(order, 3)  # which say no more than one of them
    groups = np.repeat(np.arange(EXAMPLES), 3)
    grouped = interval(metric, predicted[copies], actual[copies], RESAMPLES, groups)
    assert grouped == pytest.approx(usual)


def test_an_exact_match_is_a_group_without_a_mistake():
    actual = np.array([1, 0, 1, 0, 0, 1])
    predicted = np.array([1, 0, 1, 1, 0, 0])
    groups = np.array([7, 7, 2, 2, 2, 5])
    found = score(["exact_match"], predicted, actual, groups)
    assert found == {"exact_match": pytest.approx(1 / 3)}
    ends = interval("exact_match", predicted, actual, RESAMPLES, groups)
    assert ends == pytest.approx(reference.exact_interval(1, 3))
    assert difference("exact_match", actual, 1 - actual, actual, RESAMPLES, groups) == (1, 1)


@pytest.mark.parametrize("metric", ["pearson", "spearman", "matthews_correlation"])
@pytest.mark.parametrize("sign", [1, -1])
def test_correlations_where_all_is_right_or_reversed_are_within_their_bounds(metric, sign):
    draw = draw_two if metric == "matthews_correlation" else draw_numbers
    actual, *_ = draw(np.random.default_rng(3), EXAMPLES)
    predicted = actual if sign > 0 else 1 - actual
    low, high = interval(metric, predicted, actual, RESAMPLES)
    assert -1 <= low <= high <= 1
    assert (low, high) == pytest.approx((sign, sign), abs=1e-9)


@pytest.mark.parametrize("factor", [1e-10, 1e10])
def test_the_interval_of_pearson_does_not_depend_on_units(factor):
    actual, predicted, _ = draw_numbers(np.random.default_rng(4), EXAMPLES)
    usual = interval("pearson", predicted, actual, RESAMPLES)
    scaled = interval("pearson", factor * predicted, actual, RESAMPLES)
    assert scaled == pytest.approx(usual)
    nearly_constant = factor * (5 + 1e-15 * predicted)
    assert interval("pearson", nearly_constant, actual, RESAMPLES) == (0, 0)


@pytest.mark.parametrize("spread", [0.0, 0.04, 0.15])
def test_the_interval_of_a_mean_over_tenants_covers_that_of_all_such_tenants(spread):
    """Each tenant has an accuracy of its own, around 0.8, on 30 texts."""
    random = np.random.default_rng(5)
    ends = np.array([reference.exact_interval(count, 30) for count in range(31)])
    covered = []
    for _ in range(TRIALS):
        shares = 0.8 + random.choice([-spread, spread], size=8)
        right = random.binomial(30, shares)
        low, high = interval_of_mean(right / 30, *ends[right].T)
        covered.append(low <= 0.8 <= high)
    assert np.mean(covered) >= LEAST


def test_tenants_that_agree_by_chance_do_not_make_their_mean_certain():
    low, high = reference.exact_interval(20, 20)
    ones = np.ones(8)
    least, _ = interval_of_mean(ones, low * ones, high * ones)
    certain, _ = reference.exact_interval(160, 160)
    assert least < certain
    assert interval_of_mean(ones[:1], low * ones[:1], high * ones[:1]) == (low, high)


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
            ours = {}
            for seed, one in enumerate(differences):
                ours[seed] = Scores(one.mean(), one @ WEIGHTS[tenant])
            theirs = dict.fromkeys(ours, Scores(0.0, np.zeros(DRAWS)))
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
        comparator = Comparator(by_task, {"all": tuple(by_task)}, margin=1.0)
        found = comparator.versus("theirs", "all", ["ours"])["ours"]
        low, high = found["these"]["low"], found["these"]["high"]
        these.append(low <= truth <= high)
        if design.tenants * design.tasks > 1:
            least, most = found["new"]["low"], found["new"]["high"]
            new.append(least <= 0 <= most)
            assert least <= low <= high <= most
    assert np.mean(these) >= LEAST
    if new:
        assert np.mean(new) >= LEAST


def by_seed(values):
    """Return scores of seeds without labels."""
    scores = {}
    for seed, value in enumerate(values):
        scores[seed] = Scores(value, np.full(9, value))
    return scores


def without_labels(differences):
    """Return the difference on a task, given those by seed."""
    zeros = np.zeros(len(differences))
    return on_task([(by_seed(differences), by_seed(zeros))])


@pytest.mark.parametrize("tenants", [1, 4])
def test_without_labels_a_difference_has_the_paired_test_of_student_over_seeds(tenants):
    random = np.random.default_rng(7)
    ours = random.normal(80, 1, (tenants, 5))
    theirs = random.normal(80, 1, (tenants, 5))
    parts = zip(map(by_seed, ours), map(by_seed, theirs), strict=True)
    found = on_task(list(parts))
    expected = stats.ttest_rel(ours.mean(axis=0), theirs.mean(axis=0))
    ends = tuple(expected.confidence_interval(0.9))
    assert found.p() == pytest.approx(expected.pvalue)
    assert found.interval(0.9) == pytest.approx(ends)


def test_seeds_are_paired_and_one_in_common_says_nothing_of_the_error():
    second = {0: Scores(5.0, np.full(9, 5.0))}
    found = on_task([(by_seed([3.0, 5.0, 9.0]), second)])
    assert found.mean == -2
    assert np.isnan(found.p())
    assert np.isnan(found.interval(0.95)).all()


def test_on_new_tasks_a_difference_has_the_test_of_student_over_tasks():
    random = np.random.default_rng(8)
    tasks = []
    for difference_of_task in random.normal(2, 9, 6):
        by_seeds = difference_of_task + random.normal(0, 0.1, 5)
        tasks.append(without_labels(by_seeds))
    found = mean(tasks)
    expected = stats.ttest_1samp([task.mean for task in tasks], 0)
    ends = tuple(expected.confidence_interval(0.95))
    assert found.p("new") == pytest.approx(expected.pvalue)
    assert found.interval(0.95, "new") == pytest.approx(ends)


def test_a_mean_over_two_tasks_has_the_interval_of_welch():
    random = np.random.default_rng(9)
    first = random.normal(1, 3, 5)
    second = random.normal(2, 0.5, 3)
    low, high = mean([without_labels(first), without_labels(second)]).interval(0.95)
    welch = stats.ttest_ind(first, -second, equal_var=False).confidence_interval(0.95)
    assert (2 * low, 2 * high) == pytest.approx(tuple(welch))


@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_multiplies_each_p_value_by_how_many_are_no_smaller(values):
    found = holm(values)
    highest = 0.0
    for rank, place in enumerate(np.argsort(values, kind="stable")):
        corrected = (len(values) - rank) * values[place]
        highest = max(highest, min(1.0, corrected))
        assert found[place] == pytest.approx(highest)
