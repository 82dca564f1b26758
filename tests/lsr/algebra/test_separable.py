"""Sums of Kronecker products against dense ones: the shapes of their factors, and the nearest sum to a matrix."""

from itertools import pairwise, product
from math import prod

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from lsr.algebra.separable import FactorShapes, balance, kron_sum, nearest_kron_sum, split_width
from tests.lsr.layers import SEEDS, normal

SIZES = st.integers(1, 4)


@st.composite
def pair_shapes(draw):
    """Row shape, column shape, and every possible number of terms for a matrix of two factors."""
    rows = draw(st.tuples(SIZES, SIZES))
    columns = draw(st.tuples(SIZES, SIZES))
    return rows, columns, min(rows[0] * columns[0], rows[1] * columns[1])


@given(pair_shapes(), SEEDS)
def test_the_error_of_two_factors_falls_with_every_term_as_the_tail_of_the_singular_values(shapes, seed):
    rows, columns, limit = shapes
    matrix = normal(prod(rows), prod(columns), seed=seed)
    permuted = matrix.reshape(rows[0], rows[1], *columns).transpose(1, 2).flatten(2).flatten(0, 1)
    values = torch.linalg.svdvals(permuted)
    nearest = [balance(*nearest_kron_sum(matrix, rows, columns, terms)) for terms in range(1, limit + 1)]
    errors = [torch.dist(matrix, kron_sum(*factors)) for factors in nearest]
    for terms, error in enumerate(errors, 1):
        assert_close(error, values[terms:].norm(), atol=1e-12, rtol=1e-7)
    assert all(after < before + 1e-12 for before, after in pairwise(errors))


RANKS = st.lists(st.integers(1, 5), min_size=1, max_size=2).map(tuple)


def cost(shape, rank_shape):
    return sum(rank * size for rank, size in zip(rank_shape, shape, strict=True))


def best_shape(width, rank_shape):
    """The cheapest, with the least padding, with the longest first factor, found by trying all that waste <= 2 %."""
    largest = width + width // 50
    shapes = [shape for shape in product(range(1, largest + 1), repeat=len(rank_shape)) if width <= prod(shape)]
    allowed = [shape for shape in shapes if prod(shape) <= largest]
    return min(allowed, key=lambda shape: (cost(shape, rank_shape), prod(shape), [-size for size in shape]))


@given(st.integers(1, 120), RANKS)
def test_no_pair_of_factors_is_better(width, rank_shape):
    assert split_width(width, rank_shape) == best_shape(width, rank_shape)


@given(st.integers(1, 4), RANKS, st.integers(1, 40), st.integers(1, 40))
def test_the_count_is_that_of_the_factors(terms, rank_shape, columns, rows):
    in_shape = split_width(columns, rank_shape)
    out_shape = split_width(rows, rank_shape)
    shapes = [*zip(rank_shape, in_shape, strict=True), *zip(out_shape, rank_shape, strict=True)]
    form = FactorShapes(rank_shape, in_shape, out_shape, terms, columns, rows)
    assert form.parameters == sum(torch.empty(terms, *shape).numel() for shape in shapes)
    sides = ((rank_shape, in_shape), (out_shape, rank_shape))
    ranks = [min(p[0] * q[0], p[1] * q[1]) for p, q in sides if len(rank_shape) > 1]
    assert form.max_separation_rank == min(ranks, default=1)
