import json

import pytest

from benchmarks.family import checks
from benchmarks.family.checks import TARGETS, Target
from benchmarks.family.summary import Row, estimate
from tests.benchmarks.family.made_up import REAL

FEW = "LoRA r=1, one layer"


def row(method, tests, trained=96, stored=96, validation=0.5, data="tweets", **fields):
    return Row(
        protocol="short",
        data=data,
        method=method,
        layers="all",
        trained=trained,
        stored=stored,
        pooled=0,
        rate=0.003,
        at_edge=False,
        validation=validation,
        test=estimate(tests),
        over_first=estimate([]),
        over_second=estimate([]),
        tests=dict(enumerate(tests)),
        seconds=1.0,
        **fields,
    )


@pytest.fixture
def target(monkeypatch):
    """Sets the one target that there is."""

    def choose(*arguments, **fields):
        monkeypatch.setattr(checks, "TARGETS", (Target("a target", *arguments, **fields),))

    return choose


def test_a_difference_must_reach_the_least_one(target):
    table = [row("diagonal r=12", [0.68, 0.70, 0.72]), row(FEW, [0.70, 0.72, 0.74], 1536)]
    for least, holds in ((-0.021, True), (-0.019, False)):
        target("trained", 100, (FEW,), least)
        (found,) = checks.checks(table)
        assert found.difference.mean == pytest.approx(-0.02)
        assert (found.ours, found.rival, found.holds) == ("diagonal r=12", FEW, holds)


@pytest.mark.parametrize(("gain", "holds"), [(0.011, False), (0.013, True)])
def test_two_errors_above_is_more_than_above(target, gain, holds):
    # Differences of gain - 0.01, gain and gain + 0.01 have the standard error 0.01 / sqrt(3): two are 0.0115.
    table = [row("shared r=2", [0.6 + gain, 0.7 + gain, 0.8 + gain]), row(FEW, [0.61, 0.70, 0.79])]
    target("stored", 1560, (FEW,), 0.0, 2)
    assert [check.holds for check in checks.checks(table)] == [holds]


def test_one_seed_says_nothing_of_errors(target):
    target("stored", 1560, (FEW,), 0.0, 2)
    table = [row("shared r=2", [0.9]), row(FEW, [0.5])]
    assert [check.holds for check in checks.checks(table)] == [False]


def test_the_best_on_validation_within_the_budget_stands_for_lsr(target):
    target("trained", 100, (FEW,), 0.0)
    table = [
        row("diagonal r=12", [0.9], validation=0.5),
        row("core r=4, last layers", [0.6], validation=0.6),
        row("core r=4", [0.9], trained=192, validation=0.9),
        row("pooled core r=4", [0.9], validation=0.9),  # frames of its own are asked for
        row("LoRA-XS r=12", [0.9], validation=0.9),
        row(FEW, [0.7]),
    ]
    (found,) = checks.checks(table)
    assert (found.ours, found.holds) == ("core r=4, last layers", False)


def test_rivals_are_within_the_budget_of_what_is_stored(target):
    target("stored", 3120, checks.FEW)
    ours = row("shared r=2", [0.7], 3120, 3120)
    rivals = [
        row(checks.FEW[0], [0.6], 1536, 1536, 0.7),
        row(checks.FEW[1], [0.6], 3072, 3072, 0.8),
        row(checks.FEW[2], [0.9], 4608, 4608, 0.9),
    ]
    (found,) = checks.checks([ours, *rivals])
    assert found.rival == checks.FEW[1]


@pytest.mark.parametrize(("pool", "ours"), [("pooled", "pooled core r=4"), ("left out", "left-out core r=4")])
def test_frames_are_made_of_the_gradients_that_are_asked_for(target, pool, ours):
    target("trained", 200, ("LoRA r=1",), -0.01, pool=pool)
    others = [row(name, [0.70]) for name in ("pooled core r=4", "left-out core r=4")]
    table = [*others, row("core r=4", [0.9], validation=0.9), row("LoRA r=1", [0.705], 9216)]
    assert [(check.ours, check.holds) for check in checks.checks(table)] == [(ours, True)]


def test_data_sets_without_both_are_left_out(target):
    target("trained", 100, (FEW,), 0.0)
    table = [
        row("diagonal r=12", [0.7]),
        row("diagonal r=12", [0.7], data="movie-pairs"),
        row(FEW, [0.6], data="movie-pairs"),
    ]
    assert [check.data for check in checks.checks(table)] == ["movie-pairs"]


def test_a_check_is_json():
    table = [row("diagonal r=12", [0.7]), row(FEW, [0.6])]
    (first, *_) = checks.checks(table)
    found = json.loads(json.dumps(first.flat()))
    assert found["difference"]["mean"] == pytest.approx(0.1)
    assert found["difference"]["low"] is None


def test_targets_name_methods_that_there_are():
    for target in TARGETS:
        assert set(target.rivals) <= set(REAL)
        assert any(method.pool == target.pool for method in REAL.values())
    assert len({target.words for target in TARGETS}) == len(TARGETS)
