"""Leads against what is known of them, and the verdicts on them.

The variance of the bootstrap, Student's test, and how often intervals cover; better and worse only after Holm's
correction, equivalent only within the margin, and the hypotheses.
"""

import math
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline.arena.preset import Hypothesis
from pipeline.compare import examples as of_examples
from pipeline.compare.leads import Judge, Lead, Scores, holm, mean, on_task
from pipeline.tasks.scores import EXAMPLES as SCORES

RESAMPLES = 4000
TASKS, SEEDS, EXAMPLES = 6, 5, 80
RNG = np.random.default_rng(0)


def method(task, hits, resamples=RESAMPLES):
    """The scores of a method by seed, from what it gains on each example, (seeds, examples); the same resamples."""
    rows = np.random.default_rng(task).integers(hits.shape[1], size=(resamples, hits.shape[1]))
    return {seed: Scores(float(of.mean()), of[rows].mean(axis=1)) for seed, of in enumerate(hits)}


def nothing(task, hits, resamples=RESAMPLES):
    return method(task, np.zeros_like(hits), resamples)


def leads(gains, resamples=RESAMPLES):
    return [on_task(f"task {t}", method(t, of, resamples), nothing(t, of, resamples)) for t, of in enumerate(gains)]


def test_the_bootstrap_has_the_variance_that_theory_gives():
    """Of crossed draws of seeds and examples; of tasks the spread of their leads, which includes the errors within."""
    gains = RNG.normal(0, 8, (TASKS, 1, EXAMPLES)) + RNG.normal(0, 8, (TASKS, SEEDS, EXAMPLES))
    gains += RNG.normal(0, 1, (TASKS, SEEDS, 1)) + RNG.normal(0, 3, (TASKS, 1, 1))
    found = leads(gains)
    for lead, of in zip(found, gains, strict=True):
        seeds, examples = of.mean(axis=1), of.mean(axis=0)
        of_seeds, of_examples = seeds.var(ddof=1) / SEEDS, examples.var() / EXAMPLES
        rest = of - seeds[:, None] - examples + of.mean()
        of_both = (rest**2).sum() / (SEEDS * EXAMPLES) / ((SEEDS - 1) * EXAMPLES)
        assert lead.error_seeds**2 == pytest.approx(of_seeds)
        assert lead.error_examples**2 == pytest.approx(of_examples, rel=0.15)
        assert lead.error**2 == pytest.approx(of_seeds + of_examples + of_both, rel=0.15)
    these, new = mean(found, is_drawn=False), mean(found, is_drawn=True)
    assert these.mean == new.mean == pytest.approx(gains.mean())
    assert these.error == pytest.approx(np.hypot.reduce([lead.error for lead in found]) / TASKS, rel=0.05)
    assert new.error**2 == pytest.approx(gains.mean(axis=(1, 2)).var(ddof=1) / TASKS, rel=0.1)
    assert new.error_examples == pytest.approx(np.hypot.reduce([lead.error_examples for lead in found]) / TASKS)


def test_without_labels_a_lead_has_the_errors_of_seeds_alone_and_students_test():
    first, second = RNG.normal(80, 1, (2, SEEDS))
    one, other = ({s: Scores(v, np.full(RESAMPLES, v)) for s, v in enumerate(scores)} for scores in (first, second))
    lead = on_task("rte", one, other)
    assert (math.isnan(lead.error_examples), lead.freedom) == (True, SEEDS - 1)
    assert lead.error == pytest.approx(lead.error_seeds, rel=0.05)
    assert lead.p == pytest.approx(stats.ttest_rel(first, second).pvalue, abs=0.02)


def test_seeds_are_paired_and_one_in_common_has_no_error():
    scores = {seed: Scores(value, np.full(9, value)) for seed, value in enumerate([3.0, 5.0, 9.0])}
    lead = on_task("rte", scores, {0: scores[1]})
    assert lead.mean == -2.0
    assert all(map(math.isnan, (lead.error, lead.p, *lead.interval(0.95))))
    assert on_task("rte", scores, {7: scores[1]}) == (unknown := Lead())
    assert mean([lead, on_task("rte", scores, scores)], is_drawn=True) == Lead(-1.0)
    assert math.isnan(mean([lead, unknown], is_drawn=True).mean)
    assert mean([], is_drawn=False) == unknown


@pytest.mark.parametrize(("is_drawn", "spread"), [(True, 0.0), (True, 3.0), (False, 3.0)])
def test_intervals_cover_the_truth_about_as_often_as_they_say(is_drawn, spread):
    """Of new tasks it is 0; of these, the mean of what they have."""
    covered, trials = 0, 150
    for _ in range(trials):
        gains = RNG.normal(0, 8, (4, 1, EXAMPLES)) + RNG.normal(0, 4, (4, SEEDS, EXAMPLES))
        of_tasks = RNG.normal(0, spread, (4, 1, 1))
        low, high = mean(leads(gains + of_tasks, 100), is_drawn).interval(0.9)
        covered += low <= (0 if is_drawn else of_tasks.mean()) <= high
    assert 0.78 < covered / trials < 0.99


def test_holm_corrects_as_in_the_book():
    # 0.005 * 4; 0.01 * 3; 0.03 * 2; and 0.04, which is no smaller than the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@pytest.mark.parametrize("metric", [*of_examples.OF_CLASSES, "pearson", "macro_f1 of several labels"])
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
    found = of_examples.resampled("rte", metric, labels, predicted, 6)
    expected = [[SCORES[metric](labels[row], one[row]) for row in rows] for one in predicted]
    assert found == pytest.approx(np.array(expected), abs=1e-6)


NAMES = ("cola", "rte", "stsb", "mrpc")
PLACES = {**{task: (task,) for task in NAMES}, "mean": NAMES}
FEW = 400  # resamples


def judge_of(**methods):
    """A judge of methods by lead over the baseline and its standard deviation over seeds, resamples and tasks."""
    rng = np.random.default_rng(1)
    base = {s: Scores(80.0, np.full(FEW, 80.0)) for s in range(SEEDS)}
    scores = {task: {task: {"base": base}} for task in NAMES}
    for method, (lead, noise) in methods.items():
        for of in (of for parts in scores.values() for of in parts.values()):
            whole = 80 + lead + rng.normal(0, noise, SEEDS)
            drawn = whole + noise * rng.normal(0, 1, (FEW, 1))
            of[method] = {s: Scores(float(whole[s]), drawn[:, s]) for s in range(SEEDS)}
    return Judge(scores, PLACES, margin=1.0)


LEADS = {"same": (0.0, 0.0), "ahead": (5.0, 0.5), "behind": (-5.0, 0.5), "noise": (0.0, 3.0), "slightly": (0.5, 0.05)}


@pytest.mark.parametrize("place", ["mean", "rte"])
def test_each_method_has_the_word_that_its_interval_allows_and_no_verdict(place):
    found = judge_of(**LEADS).against("base", place, ("base", *LEADS))
    words = {"base": None, "same": "close", "ahead": "ahead", "behind": "behind", "noise": None, "slightly": "ahead"}
    assert {method: one["these"]["word"] for method, one in found.items()} == words
    unknown = dict.fromkeys(words)
    assert {method: one["new"]["word"] for method, one in found.items()} == (words if place == "mean" else unknown)
    assert found["same"]["lead"] == found["same"]["these"]["low"] == 0.0


def test_what_holds_on_these_tasks_need_not_hold_on_new_ones():
    """Leads of +9, +1, +8 and +2 with small errors: ahead on these tasks, but new ones might differ as these do."""
    judge = judge_of(one=(0.0, 0.05))
    for of, lead in zip(judge.scores.values(), (9, 1, 8, 2), strict=True):
        (part,) = of.values()
        part["one"] = {s: Scores(found.whole + lead, found.resampled + lead) for s, found in part["one"].items()}
    said = judge.against("base", "mean", ["one"])["one"]
    assert (said["these"]["word"], said["new"]["word"]) == ("ahead", None)
    assert said["new"]["low"] < 0 < said["these"]["low"] < said["these"]["high"] < said["new"]["high"]
    hypothesis = Hypothesis(method="one", expected="better", against="base", on="mean")
    (outcome,) = judge.outcomes([hypothesis])
    assert (outcome["held"], outcome["these"]["word"], outcome["new"]["word"]) == (["these"], "better", "undecided")


def test_a_hypothesis_holds_if_its_own_test_says_so():
    judge = judge_of(**LEADS, absent=(0.0, 1.0))
    del judge.scores["rte"]["rte"]["absent"]
    said = [
        ("same", "equivalent", "base", True),
        ("same", "better", "base", False),
        ("ahead", "better", "behind", True),
        ("ahead", "equivalent", "base", False),
        ("slightly", "equivalent", "base", True),
        ("noise", "equivalent", "same", False),
        ("absent", "equivalent", "base", False),
    ]
    outcomes = judge.outcomes([Hypothesis(method=m, expected=e, against=a, on="mean") for m, e, a, _ in said])
    assert [one["held"] for one in outcomes] == [["these", "new"] if held else [] for *_, held in said]
    assert outcomes[2]["lead"] == pytest.approx(10, abs=1)
    assert {*outcomes[-1]["new"].values(), *outcomes[-1]["these"].values()} == {None}
    (elsewhere,) = judge.outcomes([Hypothesis(method="same", expected="better", against="base", on="glue")])
    assert {*elsewhere["these"].values()} == {None}  # an average without records
