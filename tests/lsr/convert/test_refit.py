"""Certificates are dense distances, all terms leave nothing, and dropping terms keeps its bound: in float64."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lsr.algebra.separable import kron_sum, separation_errors
from lsr.algebra.shapes import Form, split_width
from lsr.convert import refit
from lsr.convert.refit import Reduced, Update, drop_terms, fewest_terms, fit_update, split_rank, total_error
from tests.lsr.matrices import normal

SEEDS = st.integers(0, 99)


def form(rows=24, columns=24, rank_shape=(2, 2), terms=2):
    return Form(rank_shape, split_width(columns, rank_shape), split_width(rows, rank_shape), terms, columns, rows)


def spread(shape, seed=0):
    """A pair with as many terms as the form, in its own basis, on all that the factors span."""
    a, b = (
        kron_sum(*(normal(shape.separation_rank, p, q, seed=seed + i + j) for i, (p, q) in enumerate(sizes)))
        for j, sizes in (
            (0, zip(shape.rank_shape, shape.in_shape, strict=True)),
            (10, zip(shape.out_shape, shape.rank_shape, strict=True)),
        )
    )
    return b, a


def separable(shape, seed=0):
    """The rows and columns of such a pair that a layer uses."""
    left, right = spread(shape, seed)
    return left[: shape.out_features], right[:, : shape.in_features]


def dense(update, found):
    """What is written, as a matrix of the update's rows and columns."""
    a, b = (kron_sum(*(factor.double() for factor in side)) for side in (found.a, found.b))
    return (b @ a)[: len(update.left), : update.right.shape[1]]


@settings(max_examples=25)
@given(st.integers(3, 14), st.integers(3, 14), st.integers(1, 6), st.integers(1, 4), SEEDS)
def test_the_error_is_the_dense_distance(rows, columns, inner, terms, seed):
    shape = form(rows, columns, (2, 1))
    shape = replace(shape, separation_rank=min(terms, shape.max_separation_rank))
    left, right = normal(rows, inner, seed=seed), normal(inner, columns, seed=seed + 1)
    update = Update(left, right)
    found = fit_update(update, shape)
    whole = left @ right
    assert found.norm == pytest.approx(float(whole.norm()))
    assert found.error == pytest.approx(float((whole - dense(update, found)).norm() / whole.norm()), abs=1e-9)
    assert found.separation_rank == shape.separation_rank
    assert {factor.dtype for factor in (*found.a, *found.b)} == {torch.float32}


@pytest.mark.parametrize("rank_shape", [(2, 2), (3, 1), (2, 4)])
def test_all_terms_leave_nothing(rank_shape):
    shape = form(rank_shape=rank_shape)
    shape = replace(shape, separation_rank=shape.max_separation_rank)
    update = Update(normal(24, shape.rank), normal(shape.rank, 24, seed=1))
    assert fit_update(update, shape).error < 1e-6


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("rows", "columns"), [(24, 24), (24, 40), (24, 62), (62, 62)])
def test_what_has_few_terms_is_found_again(rows, columns, seed):
    shape = form(rows, columns, terms=3)
    assert fit_update(Update(*separable(shape, seed)), shape).error < 1e-4


def test_padding_costs_nothing():
    shape = form(62, 62, terms=3)
    assert (shape.in_width, shape.out_width) == (63, 63)
    left, right = spread(shape)
    assert (len(left), right.shape[1]) == (63, 63)
    assert fit_update(Update(left[:62], right[:, :62]), shape, (left, right)).error < 1e-6


def test_a_larger_rank_than_that_of_the_update_does_no_harm():
    shape = form(terms=8)
    update = Update(normal(24, 1), normal(1, 24, seed=1))
    assert fit_update(update, shape).error < 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_more_terms_leave_less(seed):
    update = Update(normal(24, 4, seed=seed), normal(4, 24, seed=seed + 10))
    errors = [fit_update(update, form(terms=terms)).error for terms in range(1, 9)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.5 > 1e-6 > errors[-1]


@settings(max_examples=20)
@given(st.integers(1, 5), SEEDS)
def test_dropped_terms_leave_their_singular_values_on_each_side_and_less_than_the_bound_together(terms, seed):
    shape = form(terms=6)
    left, right = separable(shape, seed)
    a, b = drop_terms((left, right), replace(shape, separation_rank=terms))
    a, b = kron_sum(*a), kron_sum(*b)
    sides = ((right, a, shape.rank_shape, shape.in_shape), (left, b, shape.out_shape, shape.rank_shape))
    for whole, kept, *shapes in sides:
        (tail,) = separation_errors(whole, *shapes, [terms])
        assert float((whole - kept).norm() / whole.norm()) == pytest.approx(tail, rel=1e-9)
    together = (left @ right - b @ a).norm()
    spectral = [torch.linalg.matrix_norm(side, 2) for side in (right, b)]
    assert together <= (left - b).norm() * spectral[0] + spectral[1] * (right - a).norm() + 1e-9
    found = fit_update(Update(left, right), replace(shape, separation_rank=terms))
    assert found.error <= together / (left @ right).norm() + 1e-6


def test_an_update_of_zero_stays_zero():
    found = fit_update(Update(torch.zeros(24, 4), normal(4, 24)), form())
    assert (found.error, found.norm) == (0, 0)
    assert not (kron_sum(*found.b) @ kron_sum(*found.a)).any()
    assert all(factor.any() for factor in (*found.a, *found.b[1:]))  # what is not zero gets a gradient


def test_three_factors_have_a_certificate_too():
    shape = form(rank_shape=(2, 1, 2), terms=3)
    update = Update(normal(24, 4), normal(4, 24, seed=1))
    found = fit_update(update, shape)
    whole = update.left @ update.right
    assert found.error == pytest.approx(float((whole - dense(update, found)).norm() / whole.norm()), abs=1e-9)


def test_the_same_update_gives_the_same_bytes():
    update = Update(normal(24, 4), normal(4, 24, seed=1))
    one, two = (fit_update(update, form(terms=3)) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip([*one.a, *one.b], [*two.a, *two.b], strict=True))


# The fewest terms


def with_error(terms, error):
    return Reduced([torch.zeros(terms, 1, 1)], [torch.zeros(terms, 1, 1)], error, 1.0)


@given(st.integers(1, 40), st.integers(1, 60))
def test_the_fewest_terms_are_found_with_few_fits(needed, most):
    tried = []

    def fit(terms):
        tried.append(terms)
        return with_error(terms, 0.01 if terms >= needed else 1 / (1 + terms))

    found = fewest_terms(fit, 0.01, most)
    assert found.separation_rank == min(needed, most)
    assert (found.error <= 0.01) == (needed <= most)
    assert max(tried) <= most
    assert len(tried) == len(set(tried)) <= 2 * most.bit_length() + 1


@pytest.mark.parametrize("error", [0.5, 0.1, 1e-3])
def test_with_one_term_less_the_fit_is_worse(error):
    update = Update(normal(24, 4), normal(4, 24, seed=1))

    def fit(terms):
        return fit_update(update, form(terms=terms))

    found = fewest_terms(fit, error, form().max_separation_rank)
    assert found.error <= error
    assert fit(found.separation_rank - 1).error > error


# Small things


def test_the_total_is_that_of_one_long_vector():
    parts = [Reduced([], [], 0.5, 2.0), Reduced([], [], 0.0, 1.0), Reduced([], [], 0.1, 10.0)]
    assert total_error(parts) == pytest.approx((1 + 1) ** 0.5 / (4 + 1 + 100) ** 0.5)
    assert total_error([Reduced([], [], 0.0, 0.0)]) == 0


@pytest.mark.parametrize(("rank", "split"), [(1, (1, 1)), (4, (2, 2)), (8, (4, 2)), (12, (4, 3)), (7, (7, 1))])
def test_a_rank_splits_into_its_nearest_factors(rank, split):
    assert split_rank(rank) == split


def test_the_fit_goes_further_than_a_start_needs():
    assert refit.TOLERANCE < 5e-4
