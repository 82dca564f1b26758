"""Verdicts: better and worse only after Holm's correction, equivalent only within the margin, and the hypotheses."""

import numpy as np
import pytest

from pipeline.arena.preset import Hypothesis
from pipeline.compare.leads import Scores
from pipeline.compare.verdicts import Judge, Said

TASKS = ("cola", "rte", "stsb", "mrpc")
PLACES = {**{task: (task,) for task in TASKS}, "mean": TASKS}
SEEDS, RESAMPLES = 5, 400


def made(**methods):
    """A judge of methods by lead over the baseline and its standard deviation over seeds, resamples and tasks."""
    rng = np.random.default_rng(1)
    base = {s: Scores(80.0, np.full(RESAMPLES, 80.0)) for s in range(SEEDS)}
    scores = {task: {task: {"base": base}} for task in TASKS}
    for method, (lead, noise) in methods.items():
        for of in (of for parts in scores.values() for of in parts.values()):
            whole = 80 + lead + rng.normal(0, noise, SEEDS)
            drawn = whole + noise * rng.normal(0, 1, (RESAMPLES, 1))
            of[method] = {s: Scores(float(whole[s]), drawn[:, s]) for s in range(SEEDS)}
    return Judge(scores, PLACES, margin=1.0)


LEADS = {"same": (0.0, 0.0), "ahead": (5.0, 0.5), "behind": (-5.0, 0.5), "noise": (0.0, 3.0), "slightly": (0.5, 0.05)}


@pytest.mark.parametrize("place", ["mean", "rte"])
def test_each_method_has_the_word_that_its_interval_allows_and_no_verdict(place):
    found = made(**LEADS).against("base", place, ("base", *LEADS))
    words = {"base": None, "same": "close", "ahead": "ahead", "behind": "behind", "noise": None, "slightly": "ahead"}
    assert {method: one["these"]["word"] for method, one in found.items()} == words
    unknown = dict.fromkeys(words)
    assert {method: one["new"]["word"] for method, one in found.items()} == (words if place == "mean" else unknown)
    assert {one["these"]["p_holm"] for one in found.values()} == {None}
    assert (found["same"]["lead"], found["same"]["these"]["p"]) == (0.0, 1.0)
    assert found["slightly"]["these"]["within_high"] < 1


def test_what_holds_on_these_tasks_need_not_hold_on_new_ones():
    """Leads of +9, +1, +8 and +2 with small errors: ahead on these tasks, but new ones might differ as these do."""
    judge = made(one=(0.0, 0.05))
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
    judge = made(**LEADS, absent=(0.0, 1.0))
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
    assert outcomes[-1]["new"] == outcomes[-1]["these"] == Said()._asdict()
    (elsewhere,) = judge.outcomes([Hypothesis(method="same", expected="better", against="base", on="glue")])
    assert elsewhere["these"] == Said()._asdict()  # an average without records
