"""Kronecker sums, singular parts, bases, cores and codes of a few bits, against dense matrices in numpy.

The algebra has no border of its own yet, so this file imports it; all other files use `lsr` alone.
"""

from itertools import product
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.linalg import LinAlgError, norm, svd
from torch.testing import assert_close

from lsr.algebra.rounding import from_bytes, from_codes, group_lengths, to_bytes, to_codes
from lsr.algebra.separable import FactorShapes, balance, kron_sum, nearest_kron_sum, split_width
from lsr.algebra.spectrum import (
    core_between,
    diagonal_between,
    diagonalize_jointly,
    energy_between,
    full_svd,
    leading_bases,
    leading_svd,
)

SIZES = st.integers(1, 4)
SIDES = st.integers(1, 8)
SEEDS = st.integers(0, 999)
RANKS = st.lists(SIZES, min_size=1, max_size=2).map(tuple)
BITS = st.sampled_from([2, 3, 4, 8])


def normal(*shape, seed=0):
    """Return normal values in float64, the same for the same seed."""
    values = np.random.default_rng(seed).standard_normal(shape)
    return torch.from_numpy(values)


def orthonormal(rows, columns, seed=0):
    """Return a matrix with orthonormal columns."""
    return torch.linalg.qr(normal(rows, columns, seed=seed)).Q


def assert_near(actual, expected, tolerance=1e-9):
    """Check that two arrays differ by rounding."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def assert_canonical(rows):
    """Check that rows are orthonormal, and that the largest entry of each is positive."""
    assert_near(rows @ rows.T, torch.eye(len(rows)))
    largest = rows.abs().argmax(dim=1, keepdim=True)
    assert (rows.gather(1, largest) > 0).all()


def assert_leading(parts, dense, rank):
    """Check that parts are the leading singular ones of a matrix, by the singular values of numpy."""
    left, values, right = parts
    expected = svd(dense, compute_uv=False)
    assert_near(values, expected[:rank])
    assert_canonical(right)
    assert_near(torch.dist(dense, left * values @ right), norm(expected[rank:]))


# Sums of Kronecker products.


@given(SIZES, SIZES, SIZES, SIZES)
def test_a_sum_is_that_of_dense_kronecker_products(terms, p, q, size):
    first = normal(terms, p, q)
    second = normal(terms, q, size, seed=1)
    expected = sum(map(np.kron, first, second))
    assert_near(kron_sum(first, second), expected)
    assert_near(kron_sum(first), first.sum(dim=0))


@given(SIZES, SIZES, SIZES, SIZES, SIZES)
def test_the_error_of_the_nearest_sum_is_the_tail_of_the_singular_values(p1, p2, q1, q2, terms):
    matrix = normal(p1 * p2, q1 * q2)
    blocks = matrix.reshape(p1, p2, q1, q2).transpose(1, 2)
    values = svd(blocks.reshape(p1 * q1, p2 * q2), compute_uv=False)
    terms = min(terms, len(values))
    first, second = nearest_kron_sum(matrix, (p1, p2), (q1, q2), terms)
    assert_canonical(second.flatten(1))
    assert_near(first.flatten(1).norm(dim=1), values[:terms])
    assert_near(torch.dist(matrix, kron_sum(first, second)), norm(values[terms:]))


def test_balanced_factors_have_the_same_sum_and_equal_norms_but_a_zero_term_stays():
    first = normal(2, 2, 3)
    second = 100 * normal(2, 4, 2)
    first[1] = 0
    balanced = balance(first, second)
    assert_near(kron_sum(*balanced), kron_sum(first, second))
    assert_near(balanced[0][0].norm(), balanced[1][0].norm())
    assert torch.equal(balanced[1][1], second[1])


@given(st.integers(1, 120), RANKS)
def test_a_width_is_split_with_the_fewest_parameters(width, ranks):
    """Reference: all shapes that span the width and at most 2 % more; ties go to the least padding."""
    largest = width + width // 50
    shapes = product(range(1, largest + 1), repeat=len(ranks))
    allowed = [shape for shape in shapes if width <= prod(shape) <= largest]

    def cost(shape):
        return np.dot(ranks, shape), prod(shape), -shape[0]

    assert split_width(width, ranks) == min(allowed, key=cost)


@given(SIZES, st.tuples(SIZES, SIZES))
def test_shapes_are_those_of_the_factors(terms, ranks):
    form = FactorShapes(ranks, (3, 2), (5, 7), terms, 6, 35)
    r1, r2 = ranks
    expected = [(r1, 3), (r2, 2), (5, r1), (7, r2)]
    assert [shape[1:] for shape in form.factor_shapes.values()] == expected
    assert form.parameters == terms * sum(map(prod, expected))
    assert form.max_separation_rank == min(map(prod, expected))


# Singular parts.


@given(SIDES, SIDES, SIDES, st.booleans())
def test_the_leading_part_is_the_nearest_matrix_of_its_rank(rows, columns, rank, is_product):
    rank = min(rank, rows, columns)
    pair = normal(rows, 3), normal(3, columns, seed=1)
    dense = pair[0] @ pair[1] if is_product else normal(rows, columns)
    parts = leading_svd(pair if is_product else dense, rank)
    assert_leading(parts, dense, rank)


@given(SIDES, SIDES)
def test_the_whole_svd_is_that_of_numpy(rows, columns):
    matrix = normal(rows, columns)
    assert_leading(full_svd(matrix), matrix, min(rows, columns))


@pytest.mark.parametrize("rank", [0, 4])
def test_a_rank_above_a_side_is_rejected(rank):
    with pytest.raises(ValueError, match=r"\[1, 3\]"):
        leading_svd(normal(3, 5), rank)


def test_a_large_matrix_has_the_same_leading_part_each_time():
    left = orthonormal(1100, 20)
    right = orthonormal(1000, 20).T
    matrix = left / torch.arange(1, 21) @ right
    state = np.random.get_state()[1].copy()
    parts = leading_svd(matrix, 4, seed=3)
    again = leading_svd(matrix, 4, seed=3 + 2**32)  # numpy has fewer seeds
    assert np.array_equal(np.random.get_state()[1], state)
    assert all(map(torch.equal, parts, again))
    assert_near(parts[1], 1 / torch.arange(1, 5), 1e-5)
    assert_near((left[:, :4].T @ parts[0]).abs(), torch.eye(4), 1e-4)
    assert_near((parts[2] @ right[:4].T).abs(), torch.eye(4), 1e-4)


DENSE = [normal(9, 6, seed=seed) for seed in range(3)]
DECOMPOSITIONS = {
    "leading part": lambda: leading_svd(DENSE[0], 3),
    "whole": lambda: full_svd(DENSE[0]),
    "bases": lambda: leading_bases([(matrix, matrix.T) for matrix in DENSE], 4),
    "jointly diagonal": lambda: diagonalize_jointly(DENSE, 2),
    "Kronecker sum": lambda: nearest_kron_sum(DENSE[0], (3, 3), (3, 2), 2),
}


@pytest.mark.parametrize("decompose", DECOMPOSITIONS.values(), ids=DECOMPOSITIONS)
def test_where_the_fast_driver_of_lapack_gives_up_the_slow_one_gives_the_same(decompose, monkeypatch):
    """As with OpenBLAS on some AMD processors, where the fast driver does not converge for a finite matrix."""
    before = decompose()

    def give_up(*args, **kwargs):
        raise LinAlgError

    def give_up_in_torch(*args, **kwargs):
        raise torch.linalg.LinAlgError

    monkeypatch.setattr(np.linalg, "svd", give_up)
    monkeypatch.setattr(torch.linalg, "svd", give_up_in_torch)
    assert_close(decompose(), before)


# Bases of several matrices, and cores between bases.


PROBLEMS = st.builds(
    lambda count, rows, columns: [1000**seed * normal(rows, columns, seed=seed) for seed in range(count)],
    SIZES,
    SIDES,
    SIDES,
)


def identity(matrix):
    """Return the identity with as many rows as a matrix."""
    return torch.eye(len(matrix)).double()


def energy(matrix, left, right):
    """Return the part of a matrix's energy between two dense projections."""
    kept = left @ left.T @ matrix @ right.T @ right
    return float(kept.norm() / matrix.norm()) ** 2


@given(PROBLEMS, SIDES)
def test_bases_are_canonical_and_hold_the_energy_that_dense_projections_do(matrices, rank):
    rank = min(rank, *matrices[0].shape)
    left, right = leading_bases(matrices, rank)
    assert_canonical(left.T)
    assert_canonical(right)
    for matrix in matrices:
        held = pytest.approx(energy(matrix, left, right))
        assert energy_between(matrix, 2 * right, 3 * left) == held
        assert energy_between((matrix, identity(matrix.T)), right, left) == held
        assert energy_between(matrix, right) == pytest.approx(energy(matrix, identity(matrix), right))


@given(PROBLEMS, SIDES)
def test_joint_bases_hold_no_less_than_those_of_the_stacked_matrices(matrices, rank):
    """The HOSVD, from which the iteration starts, is a lower bound."""
    rank = min(rank, *matrices[0].shape)
    normed = [matrix / matrix.norm() for matrix in matrices]
    columns, *_ = svd(torch.cat(normed, dim=1), full_matrices=False)
    *_, rows = svd(torch.cat(normed), full_matrices=False)
    left, right = leading_bases(matrices, rank)
    held = [energy(matrix, left, right) for matrix in normed]
    least = [energy(matrix, columns[:, :rank], rows[:rank]) for matrix in normed]
    assert sum(held) >= sum(least) - 1e-6


def test_energy_of_a_zero_matrix_is_whole_and_an_infinite_one_is_rejected():
    rows = normal(2, 4)
    assert energy_between(torch.zeros(3, 4), rows) == 1.0
    with pytest.raises(ValueError, match="finite"):
        energy_between(torch.full((3, 4), torch.inf), rows)


@pytest.mark.parametrize("is_product", [False, True])
def test_large_matrices_have_the_basis_that_they_share_though_it_leads_in_none(is_product):
    """Each has a direction of its own that is larger than the one that all of them share; their norms differ."""
    columns = orthonormal(1100, 5)
    rows = orthonormal(1000, 5, seed=1).T
    matrices = []
    for own in range(1, 5):
        outer = columns[:, [0, own]] * torch.tensor([1.0, 1.2])
        inner = 10.0**own * rows[[0, own]]
        matrices.append((outer, inner) if is_product else outer @ inner)
    left, right = leading_bases(matrices, 1)
    assert_near((columns[:, :1].T @ left).abs(), [[1]], 1e-5)
    assert_near((right @ rows[:1].T).abs(), [[1]], 1e-5)


@pytest.mark.parametrize("find", [leading_bases, diagonalize_jointly])
@pytest.mark.parametrize("count", [1, 3])
def test_zero_matrices_do_not_count(find, count):
    matrices = DENSE[:count]
    zeros = [torch.zeros(9, 6), (torch.zeros(9, 3), normal(3, 6))]
    assert_close(find(zeros + matrices, 2), find(matrices, 2), atol=0, rtol=0)


EVERY = list(product(range(4), repeat=2))
CORES = {core_between: EVERY, diagonal_between: EVERY[::5]}


@pytest.mark.parametrize("find", CORES)
@pytest.mark.parametrize("is_product", [False, True])
def test_no_core_between_bases_is_nearer_to_the_matrix(find, is_product):
    """Reference: least squares over all entries of the matrix, one unknown per entry of the core."""
    pair = normal(20, 6), normal(6, 26)
    dense = pair[0] @ pair[1]
    left = normal(20, 4, seed=2)
    right = normal(4, 26, seed=3)
    unknowns = [np.kron(left[:, i], right[j]) for i, j in CORES[find]]
    best, *_ = np.linalg.lstsq(np.stack(unknowns, axis=1), dense.flatten())
    core = find(pair if is_product else dense, left, right)
    assert_near(core.flatten(), best)


# Codes of a few bits.


@given(st.lists(st.integers(1, 95), max_size=5), BITS, SEEDS)
def test_a_code_errs_by_half_a_step_unless_clipped_and_is_found_again(lengths, bits, seed):
    lengths = torch.tensor([7, *lengths])
    group = torch.arange(len(lengths)).repeat_interleave(lengths)
    values = normal(len(group), seed=seed) ** 3 * group / 1e6**group  # zeros in the first group
    codes, scales = to_codes(values.float(), lengths, bits)
    steps = scales.float()[group]
    rounded = from_codes(codes, steps, bits)
    is_inside = values.abs() <= 2 ** (bits - 1) * steps
    errors = (rounded - values).abs()
    assert (errors <= 0.50001 * steps)[is_inside].all()
    codes, scales = to_codes(rounded, lengths, bits)
    assert torch.equal(from_codes(codes, scales[group], bits), rounded)


def test_values_below_the_smallest_scale_are_zero():
    codes, scales = to_codes(torch.tensor([1e-40, -1e-39]), torch.tensor([2]), 4)
    assert not from_codes(codes, scales, 4).any()


@pytest.mark.parametrize(("bits", "least"), [(2, 0.1188), (3, 0.03744), (4, 0.01154)])
def test_the_best_step_of_a_normal_distribution_is_found(bits, least):
    """Max 1960, "Quantizing for minimum distortion", table II: the least mean squared errors of equal steps."""
    values = normal(6400).float()
    lengths = torch.full((100,), 64)
    codes, scales = to_codes(values, lengths, bits)
    errors = from_codes(codes, scales.repeat_interleave(64), bits) - values
    assert errors.square().mean() < 1.05 * least


@given(st.integers(1, 1000))
def test_groups_have_about_64_entries(width):
    lengths = group_lengths(width)
    assert (sum(lengths), len(lengths)) == (width, max(1, round(width / 64)))
    assert max(lengths) - min(lengths) <= 1


@given(BITS, st.lists(st.integers(0, 255), max_size=40))
def test_bits_of_codes_follow_one_another_without_a_gap(bits, values):
    codes = [value % 2**bits for value in values]
    number = sum(code << bits * place for place, code in enumerate(codes))
    expected = number.to_bytes(-(-bits * len(codes) // 8), "little")
    packed = to_bytes(torch.tensor(codes, dtype=torch.uint8), bits)
    assert bytes(packed.tolist()) == expected
    assert from_bytes(packed, bits, len(codes)).tolist() == codes
