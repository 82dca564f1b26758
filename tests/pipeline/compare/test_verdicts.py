"""Verdicts: better and worse only after Holm's correction, equivalent only within the margin, and the hypotheses."""

import numpy as np
import pytest

from pipeline.arena.preset import Hypothesis
from pipeline.compare.leads import Scores
from pipeline.compare.verdicts import Judge, Verdict

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
def test_each_method_has_the_verdict_that_its_lead_allows(place):
    found = made(**LEADS).against("base", place, ("base", *LEADS))
    verdicts = {method: one.verdict for method, one in found.items()}
    assert verdicts == {
        "base": None,
        "same": "equivalent",
        "ahead": "better",
        "behind": "worse",
        "noise": "undecided",
        "slightly": "better",  # and within the margin
    }
    assert (found["same"].difference, found["same"].p_holm) == (0.0, 1.0)
    assert found["slightly"].equivalence_high < 1


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
    assert [one["held"] for one in outcomes] == [held for *_, held in said]
    assert outcomes[2]["difference"] == pytest.approx(10, abs=1)
    assert outcomes[-1].items() >= Verdict()._asdict().items()
    (elsewhere,) = judge.outcomes([Hypothesis(method="same", expected="better", against="base", on="glue")])
    assert elsewhere.items() >= Verdict()._asdict().items()  # an average without records
