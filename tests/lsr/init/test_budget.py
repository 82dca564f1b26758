from itertools import accumulate, pairwise, product

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.testing import assert_close

from lsr.algebra.separable import kron_sum, nearest_kron_sum
from lsr.init.budget import captured_shares, spread_terms

ROUNDING = 1e-8  # rates are compared to nine digits


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# Curves

STEPS = st.lists(st.integers(0, 20), min_size=1, max_size=5)


def cumulative(steps):
    return [total / (sum(steps) or 1) for total in accumulate(steps)]


CONCAVE = STEPS.map(lambda steps: cumulative(sorted(steps, reverse=True)))
RISING = STEPS.map(cumulative)
ANY = st.lists(st.floats(0, 1), min_size=1, max_size=5)  # with noise, even falling
COSTS = st.integers(1, 9)


def named(values):
    return {f"layer {i}": value for i, value in enumerate(values)}


def instances(curves, costs=COSTS):
    """Pairs of (gains, costs) for one to four layers."""
    return st.lists(st.tuples(curves, costs), min_size=1, max_size=4).map(
        lambda layers: (named(curve for curve, _ in layers), named(cost for _, cost in layers))
    )


def captured(gains, terms):
    return sum(gains[name][count - 1] for name, count in terms.items())


def stored(costs, terms):
    return sum(costs[name] * count for name, count in terms.items())


def most_captured(gains, costs, budget):
    """The largest sum of shares of all ways to spend the budget."""
    choices = product(*[range(1, len(curve) + 1) for curve in gains.values()])
    spreads = [dict(zip(gains, choice, strict=True)) for choice in choices]
    return max(captured(gains, terms) for terms in spreads if stored(costs, terms) <= budget)


# Spread


@given(instances(ANY), st.integers(0, 100))
def test_a_spread_keeps_within_the_budget_and_the_curves(instance, extra):
    gains, costs = instance
    budget = sum(costs.values()) + extra
    terms = spread_terms(gains, costs, budget)
    assert list(terms) == list(gains)
    assert all(1 <= count <= len(gains[name]) for name, count in terms.items())
    assert stored(costs, terms) <= budget


@given(instances(ANY), st.integers(0, 100), st.integers(1, 100))
def test_a_larger_budget_never_captures_less(instance, extra, more):
    gains, costs = instance
    budget = sum(costs.values()) + extra
    less, larger = (captured(gains, spread_terms(gains, costs, spend)) for spend in (budget, budget + more))
    assert larger >= less - ROUNDING


@given(instances(CONCAVE, st.just(7)), st.integers(0, 100))
def test_a_spread_over_concave_curves_of_equal_costs_is_the_best(instance, extra):
    gains, costs = instance
    budget = sum(costs.values()) + extra
    found = captured(gains, spread_terms(gains, costs, budget))
    assert found == pytest.approx(most_captured(gains, costs, budget), abs=ROUNDING)


@given(instances(RISING), st.integers(0, 100))
def test_any_spread_is_less_than_one_step_from_the_best(instance, extra):
    gains, costs = instance
    budget = sum(costs.values()) + extra
    found = captured(gains, spread_terms(gains, costs, budget))
    longest = max(curve[-1] - curve[0] for curve in gains.values())
    assert found >= most_captured(gains, costs, budget) - longest - ROUNDING


@given(instances(RISING))
def test_a_budget_for_everything_captures_everything(instance):
    gains, costs = instance
    terms = spread_terms(gains, costs, stored(costs, {name: len(curve) for name, curve in gains.items()}))
    assert captured(gains, terms) == pytest.approx(sum(curve[-1] for curve in gains.values()), abs=ROUNDING)


@given(CONCAVE, st.integers(1, 6), COSTS, st.integers(0, 200))
def test_equal_layers_get_equal_terms_up_to_one(curve, layers, cost, extra):
    gains, costs = named([curve] * layers), named([cost] * layers)
    counts = spread_terms(gains, costs, layers * cost + extra).values()
    assert max(counts) - min(counts) <= 1


@given(st.integers(2, 5), st.integers(2, 12), st.integers(0, 60))
def test_straight_curves_are_shared_evenly_in_spite_of_rounding(layers, most, extra):
    gains = named([[term / most for term in range(1, most + 1)]] * layers)
    counts = list(spread_terms(gains, named([1] * layers), layers + extra).values())
    assert counts == sorted(counts, reverse=True)  # the first of equal layers comes first
    assert max(counts) - min(counts) <= 1


@given(instances(CONCAVE), st.integers(0, 100), st.randoms(use_true_random=False))
def test_the_order_of_names_decides_ties_only(instance, extra, random):
    gains, costs = instance
    rates = [
        round((after - before) / costs[name], 9) for name, curve in gains.items() for before, after in pairwise(curve)
    ]
    assume(len(set(rates)) == len(rates))
    budget = sum(costs.values()) + extra
    names = random.sample(list(gains), len(gains))
    shuffled = spread_terms({name: gains[name] for name in names}, costs, budget)
    assert list(shuffled) == names
    assert shuffled == spread_terms(gains, costs, budget)


def test_the_layer_that_gains_most_per_number_comes_first():
    gains = {"steep": [0.1, 0.7, 0.8], "flat": [0.4, 0.6, 0.8]}
    assert spread_terms(gains, {"steep": 10, "flat": 10}, 30) == {"steep": 2, "flat": 1}
    assert spread_terms(gains, {"steep": 50, "flat": 10}, 110) == {"steep": 1, "flat": 3}


def test_a_poor_step_does_not_hide_the_good_one_behind_it():
    gains = {"late": [0.1, 0.1, 0.1, 0.9], "steady": [0.1, 0.2, 0.3, 0.4]}
    costs = {"late": 1, "steady": 1}
    assert spread_terms(gains, costs, 5) == {"late": 4, "steady": 1}
    assert spread_terms(gains, costs, 4) == {"late": 1, "steady": 3}  # three more terms would not fit


def test_smaller_steps_fill_what_the_best_step_leaves():
    gains = {"dear": [0.0, 1.0], "cheap": [0.5, 0.51, 0.52], "late": [0.2, 0.22, 0.8]}
    costs = {"dear": 100, "cheap": 3, "late": 4}
    assert spread_terms(gains, costs, 107 + 7) == {"dear": 1, "cheap": 2, "late": 2}


@pytest.mark.parametrize("curve", [[1.0, 1.0, 1.0], [1 - 3e-16, 1 - 1e-16, 1.0], [0.9, 0.8, 0.7]])
def test_terms_that_gain_nothing_are_not_bought(curve):
    assert spread_terms({"done": curve}, {"done": 1}, 100) == {"done": 1}


def test_a_budget_without_one_term_a_layer_is_an_error():
    gains, costs = named([[0.5, 1.0]] * 12), named([160] * 12)
    with pytest.raises(ValueError, match="a budget of 1919 cannot hold one term in each of 12 layers: at least 1920"):
        spread_terms(gains, costs, 1919)
    assert spread_terms(gains, costs, 1920) == named([1] * 12)


# Captured shares


@pytest.mark.parametrize(("rank_shape", "in_shape"), [((2, 2), (4, 3)), ((1, 3), (5, 4)), ((2, 1, 2), (2, 3, 2))])
def test_a_share_is_one_less_the_squared_error_of_the_nearest_sum(rank_shape, in_shape):
    rows = normal(torch.Size(rank_shape).numel(), torch.Size(in_shape).numel())
    shares = captured_shares(rows, rank_shape, in_shape, 3)
    for terms, share in enumerate(shares, start=1):
        nearest = kron_sum(*nearest_kron_sum(rows, rank_shape, in_shape, terms))
        residual = (rows - nearest).square().sum() / rows.square().sum()
        assert_close(torch.tensor(share, dtype=torch.float64), 1 - residual)


@given(st.integers(1, 5), st.integers(0, 10**6))
def test_shares_are_concave_and_reach_one_where_the_rows_are_separable(terms, seed):
    rows = kron_sum(normal(terms, 2, 3, seed=seed), normal(terms, 2, 5, seed=seed + 1))
    shares = captured_shares(rows, (2, 2), (3, 5), 6)
    gained = [after - before for before, after in pairwise([0.0, *shares])]
    assert all(later <= earlier + ROUNDING for earlier, later in pairwise(gained))
    assert all(gain >= -ROUNDING for gain in gained)
    assert all(share == pytest.approx(1, abs=ROUNDING) for share in shares[terms - 1 :])
    assert shares[0] < 1 - 1e-9 or terms == 1
