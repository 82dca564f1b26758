"""Starts that fit A and B together to the weight or a part of it, and that are folded: `principal`, `minor`, `cp`."""

import pytest
import torch
from torch.testing import assert_close

from lsr.algebra.separable import kron_sum
from lsr.algebra.shapes import max_separation_rank, split_width
from lsr.init import cp, minor, principal
from tests.lsr.init.forms import RANKS, source_of
from tests.lsr.matrices import decaying, normal

STARTS = {"principal": principal.start, "minor": minor.start, "cp": cp.start}
each_start = pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
each_count = pytest.mark.parametrize("rank_shape", RANKS.values(), ids=RANKS)
SCALING = 0.3


def update(found, rows, columns, scaling=SCALING):
    return scaling * (kron_sum(*found.b)[:rows] @ kron_sum(*found.a)[:, :columns])


def part(weight, begin, end):
    """What the singular values at these positions contribute."""
    u, values, v = torch.linalg.svd(weight, full_matrices=False)
    return (u[:, begin:end] * values[begin:end]) @ v[begin:end]


@each_count
def test_the_error_of_principal_is_the_distance_of_its_scaled_update_from_the_weight(rank_shape):
    weight = decaying(24, 24)
    found = principal.start(source_of(weight, rank_shape, 3, scaling=SCALING))
    left = torch.linalg.matrix_norm(weight - update(found, 24, 24)) / torch.linalg.matrix_norm(weight)
    assert found.error == pytest.approx(float(left), rel=1e-6)
    assert found.rows is None  # it aims at the leading row space of the weight


@each_count
def test_the_error_of_minor_is_the_distance_from_the_trailing_part(rank_shape):
    weight, rank = decaying(24, 24), 2 ** len(rank_shape)
    found = minor.start(source_of(weight, rank_shape, 3, scaling=SCALING))
    target = part(weight, 24 - rank, 24)
    left = torch.linalg.matrix_norm(target - update(found, 24, 24)) / torch.linalg.matrix_norm(target)
    assert found.error == pytest.approx(float(left), rel=1e-5)
    assert_close(weight @ found.rows.T @ found.rows, target, atol=1e-7, rtol=0)


@each_count
def test_the_error_of_cp_is_the_distance_from_the_truncated_svd(rank_shape):
    weight, rank = decaying(24, 24), 2 ** len(rank_shape)
    found = cp.start(source_of(weight, rank_shape, 3, scaling=SCALING))
    target = part(weight, 0, rank)
    left = torch.linalg.matrix_norm(target - update(found, 24, 24)) / torch.linalg.matrix_norm(target)
    assert found.error == pytest.approx(float(left), rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_fitting_both_sides_together_is_nearer_to_the_weight_than_decomposing_them_one_by_one(seed):
    weight = decaying(24, 24, seed=seed)
    together, apart = (
        float(torch.linalg.matrix_norm(weight - update(start(source_of(weight, terms=2, scaling=SCALING)), 24, 24)))
        for start in (principal.start, cp.start)
    )
    assert together < apart


@pytest.mark.parametrize("width", [24, 26])
def test_cp_with_all_terms_is_the_truncated_svd(width):
    weight = decaying(width, width)
    terms = max_separation_rank((2, 2), split_width(width, (2, 2)))
    found = cp.start(source_of(weight, (2, 2), terms, scaling=SCALING))
    assert_close(update(found, width, width), part(weight, 0, 4), atol=1e-9, rtol=0)


def test_principal_finds_a_weight_of_its_own_form():
    a, b = [normal(2, 2, 6), normal(2, 2, 4, seed=1)], [normal(2, 6, 2, seed=2), normal(2, 4, 2, seed=3)]
    found = principal.start(source_of(kron_sum(*b) @ kron_sum(*a), (2, 2), 2))
    assert found.error < 0.1


@each_start
def test_the_scaling_is_spread_over_the_factors(start):
    weight = decaying(20, 26)
    one, other = (
        update(start(source_of(weight, terms=3, scaling=scaling)), 20, 26, scaling) for scaling in (1.0, 0.01)
    )
    assert_close(one, other, atol=1e-10, rtol=0)


@each_count
@each_start
def test_all_factors_of_a_term_have_one_length(start, rank_shape):
    found = start(source_of(decaying(24, 24), rank_shape, 3, scaling=SCALING))
    for side in (found.a, found.b):
        lengths = torch.stack([factor.flatten(1).norm(dim=1) for factor in side])
        assert_close(lengths, lengths[:1].expand_as(lengths))


@each_start
def test_a_trainable_weight_in_lower_precision_gives_nearly_the_same_update_without_a_gradient(start):
    weight = decaying(24, 24)
    low = weight.float().requires_grad_()
    found = start(source_of(low, scaling=SCALING))
    assert not any(factor.requires_grad for factor in (*found.a, *found.b))
    expected = update(start(source_of(weight, scaling=SCALING)), 24, 24)
    assert_close(update(found, 24, 24).double(), expected, atol=1e-4, rtol=0)
