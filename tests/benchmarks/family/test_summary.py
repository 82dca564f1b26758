from math import isnan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.family import plan, summary
from benchmarks.family.summary import PEERS, Estimate, estimate
from tests.benchmarks.family.made_up import GRID, PLACES, RUN, finished

PEER, OTHER = (RUN._replace(method=peer) for peer in PEERS)


def row(found, method=RUN.method):
    return next(row for row in summary.rows(found) if row.method == method)


def test_means_and_intervals_are_those_of_scipy():
    tests = [0.70, 0.72, 0.69, 0.75, 0.71]
    found = row(finished(RUN, tests))
    low, high = stats.t.interval(0.95, 4, loc=np.mean(tests), scale=stats.sem(tests))
    error = np.std(tests, ddof=1) / np.sqrt(5)
    assert found.test == pytest.approx((np.mean(tests), low, high, error), abs=1e-12)
    assert (found.trained, found.stored, found.rate, found.layers) == (100, 120, GRID[1], "all")
    assert found.tests == dict(enumerate(tests))
    assert (found.seconds, found.validation) == (2.0, pytest.approx(0.7))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_an_interval_holds_the_mean_in_its_middle(values):
    found = estimate(values)
    assert found.low <= found.mean <= found.high
    assert found.mean - found.low == pytest.approx(found.high - found.mean, abs=1e-9)


def test_one_seed_has_no_interval_and_none_no_mean():
    assert estimate([0.5]).mean == 0.5
    assert isnan(estimate([0.5]).low)
    assert isnan(estimate([0.5]).error)
    assert isnan(estimate([]).mean)
    assert [Estimate().words(".3f"), estimate([0.5]).words(".2f")] == ["–", "0.50"]
    assert Estimate(0.5, 0.4, 0.6).words("+.1f") == "+0.5 (+0.4 to +0.6)"


def test_differences_are_to_lora_with_the_same_seed():
    first, second = [0.60, 0.70, 0.65, 0.72, 0.68], [0.9, 0.8, 0.7, 0.9, 0.8]
    ours = [0.61, 0.72, 0.66, 0.73, 0.70]
    found = finished(PEER, first) | finished(OTHER, second) | finished(RUN, ours)
    for name, others in (("over_first", first), ("over_second", second)):
        test = stats.ttest_rel(ours, others).confidence_interval()
        mean = np.mean(np.subtract(ours, others))
        assert getattr(row(found), name)[:3] == pytest.approx((mean, test.low, test.high), abs=1e-12)
    assert isnan(row(found, PEERS[0]).over_first.mean)
    assert row(found, PEERS[0]).over_second.mean == pytest.approx(np.mean(first) - np.mean(second))


def test_only_seeds_that_both_have_make_a_difference():
    found = finished(PEER, [0.6, 0.7]) | finished(RUN, [0.7, 0.9, 1.0, 1.0, 1.0])
    assert row(found).over_first.mean == pytest.approx(0.15)
    assert isnan(row(found).over_second.mean)


def test_the_table_is_of_the_rate_and_the_layers_as_tuned():
    few = RUN._replace(method="LoRA r=1, one layer")
    found = row(finished(few, [0.5] * 5, rate=GRID[2], place=PLACES[2]), few.method)
    assert (found.rate, found.layers, found.test.mean, found.at_edge) == (GRID[2], "1, 3", 0.5, False)


def test_the_best_beyond_the_grid_is_said_to_be_at_the_edge():
    found = finished(RUN, [0.5], rate=GRID[-1])
    (further,) = plan.wider(RUN, found)
    assert not row(found).at_edge
    found[further.key()]["validation"] = 0.9
    assert row(found).at_edge
    assert row(found).rate == further.rate


def test_a_method_that_is_not_tuned_has_no_row():
    found = finished(RUN, [0.5] * 5)
    del found[plan.grid(RUN)[0].key()]
    assert summary.rows(found) == []


def test_a_flat_row_has_three_fields_an_estimate_and_no_nan():
    fields = row(finished(RUN, [0.5, 0.6])).flat()
    assert fields["test"] == pytest.approx(0.55)
    assert fields["test_low"] < 0.5 < 0.6 < fields["test_high"]
    assert fields["over_first"] is fields["over_first_low"] is None


def test_a_frozen_sign_takes_a_bit_and_all_else_four_bytes():
    for method, trained, stored, size in (
        ("core r=4", 16, 16 + 768, 4 * 784),
        ("core r=12, signs", 144, 144 + 9216, 4 * 144 + 9216 // 8),
        ("LoRA r=1", 9216, 9216, 36864),
    ):
        run = RUN._replace(method=method)
        found = row(finished(run, [0.5], trained=trained, stored=stored), method)
        assert found.size == found.flat()["size"] == size
