"""Differences against what is known of them, and the verdicts on them.

How often intervals cover a known truth, Student's tests of scipy where they are the same, variances against those of
many draws; better and worse only after Holm's correction, equivalent only within the margin, and the hypotheses.
"""

import json
import math
import zlib
from dataclasses import asdict
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.arena.preset import Hypothesis
from pipeline.compare import examples as of_examples
from pipeline.compare.differences import SCOPES, Comparator, Difference, Scores, holm, mean, on_task
from pipeline.tasks import sums
from pipeline.tasks.scores import EXAMPLES as SCORES
from tests.workspace import ROOT

SEEDS = 5
RNG = np.random.default_rng(0)


class Design(NamedTuple):
    """How differences come about, in percentage points: sizes, and standard deviations of what is drawn."""

    seeds: int
    parts: int = 1  # of the task: tenants
    tasks: int = 1  # of the average, each with trainings of its own
    of_seeds: float = 0.0  # what a seed does to all tenants of a task
    alone: float = 0.0  # what it does to one of them
    of_parts: float = 0.0  # how tenants differ, or the tasks of an average
    of_examples: float = 20.0  # how examples differ for all seeds alike
    interplay: float = 15.0  # how they differ from seed to seed
    first: float = 1.0  # times as much as of other tasks is what seeds and examples do to the first

    @property
    def name(self) -> str:
        return ", ".join(f"{name} {value:g}" for name, value in self._asdict().items())


N, DRAWS = 60, 300  # test examples of a part, resamples of them


class Drawn(NamedTuple):
    """One draw of a design: what the arena would score, and what is true."""

    comparator: Comparator
    truth: float  # of these tasks and tenants; of new ones it is 0


def weights(part):
    """Return how often each example is in each resample of a part, the same for all methods."""
    rows = np.random.default_rng(part).integers(N, size=(DRAWS, N))
    return np.stack([np.bincount(row, minlength=N) for row in rows]).T / N  # (examples, resamples)


WEIGHTS = [weights(part) for part in range(50)]


def draw(design, rng):
    """Draw a design: a method whose true difference from the baseline on new tasks is 0."""
    scores, truths = {}, []
    for task in range(design.tasks):
        times = 1.0 if task else design.first
        spread = rng.normal(0, design.of_parts, design.parts)  # of the only part: of the task
        seeds = rng.normal(0, design.of_seeds, design.seeds) + rng.normal(0, design.alone, (design.parts, design.seeds))
        examples = rng.normal(0, design.of_examples, (design.parts, 1, N))
        examples = examples + rng.normal(0, design.interplay, (design.parts, design.seeds, N))
        rows = spread[:, None, None] + times * (seeds[:, :, None] + examples)
        truths.append(spread.mean())
        scores[f"task {task}"] = {
            f"part {part}": {
                "method": {seed: Scores(float(row.mean()), row @ WEIGHTS[part]) for seed, row in enumerate(of)},
                "base": {seed: Scores(0.0, np.zeros(DRAWS)) for seed in range(design.seeds)},
            }
            for part, of in enumerate(rows)
        }
    return Drawn(Comparator(scores, {"here": tuple(scores)}, margin=1.0), float(np.mean(truths)))


def coverage(design, trials):
    """Return how often 95 % intervals cover the truth, on these tasks and on new ones, and each trial's intervals."""
    rng, covered, said = np.random.default_rng(zlib.crc32(design.name.encode())), dict.fromkeys(SCOPES, 0), []
    for _ in range(trials):
        comparator, truth = draw(design, rng)
        found = comparator.versus("base", "here", ["method"])["method"]
        for scope, expected in (("these", truth), ("new", 0.0)):
            if found[scope]["low"] is not None:
                covered[scope] += found[scope]["low"] <= expected <= found[scope]["high"]
        said.append(found)
    return {scope: count / trials for scope, count in covered.items()}, said


def tolerance(trials):
    """Three standard errors of a share of trials that is 95 % in truth."""
    return 3 * math.sqrt(0.95 * 0.05 / trials)


ALIKE = {"of_seeds": 6.0}  # as differences of seeds of the preset tenants are, or larger
UNLIKE = {"of_seeds": 4.0, "alone": 2.0, "of_parts": 5.0}
QUICK = [Design(2, 8, **ALIKE), Design(5, 8, **ALIKE), Design(3, 4, **UNLIKE), Design(3, 1, 4, of_seeds=2.0)]
NIGHTLY = [
    *(
        Design(seeds, parts, **sizes)
        for seeds in (2, 3, 5)
        for parts in (1, 2, 8)
        for sizes in (ALIKE, UNLIKE, {}, {"of_seeds": 1.0}, {"alone": 3.0}, {"of_parts": 5.0})
    ),
    *(Design(seeds, 50, **sizes) for seeds in (2, 3, 5) for sizes in (ALIKE, UNLIKE)),
    *(
        Design(seeds, 1, tasks, of_seeds=of_seeds, of_parts=of_parts)
        for seeds in (3, 5)
        for tasks in (2, 5)
        for of_seeds in (0.0, 3.0)
        for of_parts in (0.0, 6.0)
    ),
    *(Design(seeds, 1, 5, of_seeds=3.0, of_examples=1.0, interplay=1.0, first=20.0) for seeds in (2, 3, 5)),
]


@pytest.mark.parametrize(
    ("design", "trials"),
    [*((one, 300) for one in QUICK), *(pytest.param(one, 600, marks=pytest.mark.nightly) for one in NIGHTLY)],
    ids=lambda one: one.name if isinstance(one, Design) else str(one),
)
def test_intervals_cover_the_truth_as_often_as_they_say(design, trials):
    """A seed trains one model for all tenants of a task, and each task of an average has trainings of its own."""
    covered, said = coverage(design, trials)
    # Nearly all of the error is that of one task, and the degrees of freedom of a sum are estimated.
    lost = 0.0 if design.first == 1 else 0.02 if design.seeds > 2 else 0.05
    assert covered["these"] > 0.95 - lost - tolerance(trials)
    if design.of_seeds == ALIKE["of_seeds"] and design.parts >= 8:  # then the difference has the error of seeds alone
        assert covered["these"] == pytest.approx(0.95, abs=max(0.015, tolerance(trials)))
    if design.seeds > 3:
        assert covered["these"] < 0.97 + tolerance(trials)
    if design.parts * design.tasks > 1:
        assert covered["new"] > 0.95 - tolerance(trials)
        assert all(one["new"]["low"] <= one["these"]["low"] for one in said)
        assert all(one["these"]["high"] <= one["new"]["high"] for one in said)


@pytest.mark.parametrize("design", [Design(5, 4, **UNLIKE), Design(4, 1, 6, of_seeds=3.0, of_parts=2.0)])
def test_variances_are_those_of_many_draws(design):
    """Those of a difference around the truth of these tasks, and of new ones."""
    rng, found, errors = np.random.default_rng(1), [], []
    for _ in range(400):
        comparator, truth = draw(design, rng)
        parts = [[(of["method"], of["base"]) for of in task.values()] for task in comparator.scores.values()]
        difference = mean([on_task(task) for task in parts])
        found.append((difference.mean - truth, difference.mean))
        errors.append([sum(variance for variance, _ in errors) for errors in (difference.these, difference.drawn)])
    assert np.mean(errors, axis=0) == pytest.approx(np.var(found, axis=0), rel=0.2)


def plain(values):
    """Scores of seeds without labels."""
    return {seed: Scores(value, np.full(9, value)) for seed, value in enumerate(values)}


@pytest.mark.parametrize("tenants", [1, 8])
def test_without_labels_a_difference_has_students_paired_test_over_the_seeds_means_of_tenants(tenants):
    first, second = RNG.normal(80, 1, (2, tenants, SEEDS))
    difference = on_task([(plain(one), plain(other)) for one, other in zip(first, second, strict=True)])
    expected = stats.ttest_rel(first.mean(axis=0), second.mean(axis=0))
    assert difference.p() == pytest.approx(expected.pvalue)
    assert difference.interval(0.9) == pytest.approx(tuple(expected.confidence_interval(0.9)))
    assert math.isnan(difference.error_examples)
    assert difference.error_seeds == pytest.approx(stats.sem((first - second).mean(axis=0)))


def test_on_new_tasks_a_difference_has_students_test_over_tasks_that_differ():
    differences = RNG.normal(2, 9, 6)  # of tasks, each with little error within
    tasks = [
        on_task([(plain(difference + RNG.normal(0, 0.1, SEEDS)), plain(np.zeros(SEEDS)))]) for difference in differences
    ]
    expected = stats.ttest_1samp([one.mean for one in tasks], 0)
    found = mean(tasks)
    assert found.p("new") == pytest.approx(expected.pvalue)
    assert found.interval(0.95, "new") == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.half(0.95) < 0.2 < found.half(0.95, "new")


@settings(max_examples=40, deadline=None)
@given(
    seeds=st.integers(2, 5),
    parts=st.integers(1, 4),
    tasks=st.integers(1, 5),
    scale=st.sampled_from([0.0, 0.5, 20.0]),
    within=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_nothing_is_known_better_of_new_tasks_than_of_these(seeds, parts, tasks, scale, within, seed):
    """Nor of these with other seeds than with the same."""
    design = Design(seeds, parts, tasks, scale * within, within, scale, 20 * within, 10.0 * within)
    comparator, _ = draw(design, np.random.default_rng(seed))
    hypothesis = Hypothesis(method="method", expected="better", versus="base", on="here")
    (found,) = comparator.outcomes([hypothesis])
    these, new = (found[scope] for scope in SCOPES)
    if parts * tasks > 1:
        assert new["low"] <= these["low"] <= these["high"] <= new["high"]
        assert new["p_holm"] >= these["p_holm"]
    else:
        assert new["low"] is None
    error = found["error_examples"] or 0.0
    assert these["high"] - these["low"] >= 2 * stats.norm.ppf(0.975) * error - 1e-9


@pytest.mark.parametrize("name", sorted(path.parent.name for path in (ROOT / "reports/compare").glob("*/*.json")))
def test_in_the_committed_comparisons_too(name):
    found = json.loads((ROOT / "reports/compare" / name / "comparison.json").read_text(encoding="utf-8"))
    for one in (*found["hypotheses"], *found["results"]):
        these, new = (one[scope] for scope in SCOPES)
        if new["low"] is not None:
            assert new["low"] <= these["low"] <= these["high"] <= new["high"], one
            assert new.get("p_holm", 1) >= these.get("p_holm", 0), one


def test_seeds_that_agree_by_chance_do_not_make_a_difference_certain():
    """Two seeds have the same difference on other examples: how much examples vary is known, no error is below."""
    rng = np.random.default_rng(0)
    right = rng.permuted(np.repeat([100.0, 0.0], 50).reshape(1, 100).repeat(2, axis=0), axis=1)
    rows = np.random.default_rng(1).integers(100, size=(DRAWS, 100))
    method = {seed: Scores(float(of.mean()), of[rows].mean(axis=1)) for seed, of in enumerate(right)}
    difference = on_task([(method, plain([49.0, 49.0]) | {s: Scores(49.0, np.full(DRAWS, 49.0)) for s in range(2)})])
    assert difference.mean == 1.0
    assert difference.error_seeds == 0
    assert difference.half(0.95) == pytest.approx(1.96 * 50 / math.sqrt(200), rel=0.15)
    assert difference.p() > 0.5


def test_seeds_are_paired_and_one_in_common_has_no_error():
    scores = plain([3.0, 5.0, 9.0])
    difference = on_task([(scores, {0: scores[1]})])
    assert difference.mean == -2.0
    assert all(
        map(
            math.isnan,
            (difference.error_seeds, difference.p(), *difference.interval(0.95), *difference.interval(0.95, "new")),
        )
    )
    unknown = Difference()
    same(on_task([(scores, {7: scores[1]})]), unknown)
    same(on_task([]), unknown)
    same(mean([difference, on_task([(scores, scores)])]), Difference(-1.0))
    assert math.isnan(mean([difference, unknown]).mean)
    same(mean([]), unknown)


def same(difference, expected):
    """Check that two differences have equal fields; unknown ones are NaN, which does not equal itself."""
    np.testing.assert_equal(asdict(difference), asdict(expected))


def without_labels(differences):
    """A task on which a method has these differences by seed."""
    mine = {seed: Scores(80 + difference, np.full(2, 80 + difference)) for seed, difference in enumerate(differences)}
    theirs = {seed: Scores(80.0, np.full(2, 80.0)) for seed in range(len(differences))}
    return mine, theirs


def test_a_mean_over_two_tasks_has_the_interval_of_welch():
    """Half the difference of one mean and minus the other, by scipy."""
    first = RNG.normal(1, 3, 5)
    second = RNG.normal(2, 0.5, 3)
    difference = mean([on_task([without_labels(first)]), on_task([without_labels(second)])])
    welch = stats.ttest_ind(first, -second, equal_var=False).confidence_interval(0.95)
    assert difference.interval(0.95) == pytest.approx((welch.low / 2, welch.high / 2))


def test_errors_of_seeds_and_of_tenants_are_those_of_their_sum_without_a_rest():
    tenants = np.array([0.0, 1.0, 5.0, -2.0])
    seeds = np.array([0.0, 3.0, -4.0])
    difference = on_task([without_labels(tenant + seeds) for tenant in tenants])
    of_tenants, of_seeds = difference.drawn
    assert of_tenants.variance == pytest.approx(stats.sem(tenants) ** 2)
    assert of_seeds.variance == pytest.approx(stats.sem(seeds) ** 2)


@pytest.mark.parametrize(("share", "word"), [(1.01, "close"), (0.99, None)])
def test_a_difference_is_within_the_margin_if_two_one_sided_tests_at_five_percent_say_so(share, word):
    """By scipy's tests of the differences by seed."""
    differences = np.array([-0.5, 0.8, 0.1, -0.2, 0.4])
    margin = share * (differences.mean() + stats.sem(differences) * stats.t.ppf(0.95, len(differences) - 1))
    below = stats.ttest_1samp(differences, margin, alternative="less")
    above = stats.ttest_1samp(differences, -margin, alternative="greater")
    assert (max(below.pvalue, above.pvalue) < 0.05) == (word == "close")
    mine, theirs = without_labels(differences)
    comparator = Comparator({"rte": {"rte": {"a": mine, "b": theirs}}}, {"rte": ("rte",)}, margin)
    assert comparator.versus("b", "rte", ["a"])["a"]["these"]["word"] == word


def test_holm_corrects_as_in_the_book():
    # 0.005 * 4; 0.01 * 3; 0.03 * 2; and 0.04, which is no smaller than the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@pytest.mark.parametrize("metric", [*sums.OF_CLASSES, "pearson", "macro_f1 of several labels"])
@settings(max_examples=12)
@given(classes=st.integers(2, 4), examples=st.integers(3, 30), seed=st.integers(0, 1000))
def test_scores_of_resamples_are_those_of_the_examples_that_were_drawn(metric, classes, examples, seed):
    rng = np.random.default_rng(seed)
    metric, _, several = metric.partition(" ")
    shape = (4, examples, classes) if several or metric == "micro_f1" else (4, examples)
    labels, *predicted = rng.integers(0, 2 if len(shape) > 2 or metric == "f1" else classes, shape).astype(float)
    predicted.append(np.ones_like(labels))
    if metric == "pearson":
        predicted[0] += 1e4  # of which the variance is a small rest
    rows = np.random.default_rng(zlib.crc32(b"rte")).integers(examples, size=(6, examples))
    found = of_examples.resample("rte", metric, labels, predicted, 6)
    expected = [[SCORES[metric](labels[row], one[row]) for row in rows] for one in predicted]
    assert found == pytest.approx(np.array(expected), abs=1e-6)


NAMES = ("cola", "rte", "stsb", "mrpc")
PLACES = {**{task: (task,) for task in NAMES}, "mean": NAMES}
FEW = 400  # resamples


def comparator_of(**methods):
    """A judge of methods by difference from the baseline and its standard deviation over seeds, resamples and tasks."""
    rng = np.random.default_rng(1)
    base = {s: Scores(80.0, np.full(FEW, 80.0)) for s in range(SEEDS)}
    scores = {task: {task: {"base": base}} for task in NAMES}
    for method, (difference, noise) in methods.items():
        for of in (of for parts in scores.values() for of in parts.values()):
            whole = 80 + difference + rng.normal(0, noise, SEEDS)
            drawn = whole + noise * rng.normal(0, 1, (FEW, 1))
            of[method] = {s: Scores(float(whole[s]), drawn[:, s]) for s in range(SEEDS)}
    return Comparator(scores, PLACES, margin=1.0)


DIFFERENCES = {
    "same": (0.0, 0.0),
    "ahead": (5.0, 0.5),
    "behind": (-5.0, 0.5),
    "noise": (0.0, 3.0),
    "slightly": (0.5, 0.05),
}


@pytest.mark.parametrize("place", ["mean", "rte"])
def test_each_method_has_the_word_that_its_interval_allows_and_no_verdict(place):
    found = comparator_of(**DIFFERENCES).versus("base", place, ("base", *DIFFERENCES))
    words = {"base": None, "same": "close", "ahead": "ahead", "behind": "behind", "noise": None, "slightly": "ahead"}
    assert {method: one["these"]["word"] for method, one in found.items()} == words
    unknown = dict.fromkeys(words)
    assert {method: one["new"]["word"] for method, one in found.items()} == (words if place == "mean" else unknown)
    assert found["same"]["difference"] == found["same"]["these"]["low"] == 0.0


def test_what_holds_on_these_tasks_need_not_hold_on_new_ones():
    """Differences of +9, +1, +8 and +2 with small errors: ahead on these tasks, but new ones might differ, too."""
    comparator = comparator_of(one=(0.0, 0.05))
    for of, difference in zip(comparator.scores.values(), (9, 1, 8, 2), strict=True):
        (part,) = of.values()
        part["one"] = {
            s: Scores(found.whole + difference, found.resampled + difference) for s, found in part["one"].items()
        }
    said = comparator.versus("base", "mean", ["one"])["one"]
    assert (said["these"]["word"], said["new"]["word"]) == ("ahead", None)
    assert said["new"]["low"] < 0 < said["these"]["low"] < said["these"]["high"] < said["new"]["high"]
    hypothesis = Hypothesis(method="one", expected="better", versus="base", on="mean")
    (outcome,) = comparator.outcomes([hypothesis])
    assert (outcome["held"], outcome["these"]["word"], outcome["new"]["word"]) == (["these"], "better", "undecided")


def test_a_hypothesis_holds_if_its_own_test_says_so():
    comparator = comparator_of(**DIFFERENCES, absent=(0.0, 1.0))
    del comparator.scores["rte"]["rte"]["absent"]
    said = [
        ("same", "equivalent", "base", True),
        ("same", "better", "base", False),
        ("ahead", "better", "behind", True),
        ("ahead", "equivalent", "base", False),
        ("slightly", "equivalent", "base", True),
        ("noise", "equivalent", "same", False),
        ("absent", "equivalent", "base", False),
    ]
    outcomes = comparator.outcomes([Hypothesis(method=m, expected=e, versus=a, on="mean") for m, e, a, _ in said])
    assert [one["held"] for one in outcomes] == [["these", "new"] if held else [] for *_, held in said]
    assert outcomes[2]["difference"] == pytest.approx(10, abs=1)
    assert {*outcomes[-1]["new"].values(), *outcomes[-1]["these"].values()} == {None}
    (elsewhere,) = comparator.outcomes([Hypothesis(method="same", expected="better", versus="base", on="glue")])
    assert {*elsewhere["these"].values()} == {None}  # an average without records


@pytest.mark.parametrize("metric", ["accuracy", "f1"])
def test_groups_are_drawn_whole(metric):
    rng = np.random.default_rng(0)
    groups = np.repeat(rng.permutation(30), rng.integers(1, 5, 30))
    labels, *predicted = rng.integers(0, 2, (3, len(groups))).astype(float)
    table = pd.DataFrame({"label": labels, "group": groups})
    (part,) = of_examples.parts_of("multirc", table).values()
    assert of_examples.get_groups(part).tolist() == groups.tolist()
    assert of_examples.get_groups(of_examples.parts_of("rte", table[["label"]])["rte"]) is None
    assert part.to_numpy().tolist() == labels.tolist()
    found = of_examples.resample("multirc", metric, part.to_numpy(), predicted, 50, of_examples.get_groups(part))
    draws = np.random.default_rng(zlib.crc32(b"multirc")).integers(30, size=(50, 30))
    for drawn, scored in zip(draws, found.T, strict=True):
        rows = np.concatenate([np.flatnonzero(groups == number) for number in drawn])
        expected = [SCORES[metric](labels[rows], one[rows]) for one in predicted]
        assert scored == pytest.approx(expected)


def test_a_variance_that_rounding_makes_negative_is_zero():
    """Methods whose mistakes cancel over the seeds differ by nothing, whatever the last bits are."""
    for seed in range(100):
        drawn = 100 * np.random.default_rng(seed).random((2 + seed % 4, 200))
        mine = {number: Scores(float(row.mean()), row) for number, row in enumerate(drawn)}
        theirs = {number: mine[(number + 1) % len(mine)] for number in mine}
        difference = on_task([(mine, theirs)])
        assert difference.alone[0].variance == pytest.approx(0, abs=1e-9)
        assert difference.half(0.95) == pytest.approx(
            stats.t.ppf(0.975, len(mine) - 1)
            * stats.sem([mine[number].whole - theirs[number].whole for number in mine]),
            rel=1e-3,
        )
