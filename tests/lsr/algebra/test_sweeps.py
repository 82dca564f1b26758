"""No sweep loses, the basis between A and B stays, and single steps end where TensorLy's solvers do."""

from math import prod

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given, settings
from tensorly.decomposition import parafac, tensor_train_matrix
from torch.testing import assert_close

from lsr.algebra import sweeps
from lsr.algebra.fit import fit_product, normalized
from lsr.algebra.separable import kron_sum, rearrange
from lsr.algebra.sweeps import product_sweeps, row_space_sweeps
from tests.lsr.algebra.problems import (
    SEEDS,
    decaying,
    difference,
    drawn,
    drawn_sides,
    forms,
    normal,
    product,
    projection,
)


@settings(max_examples=10)
@given(forms(), SEEDS)
def test_no_sweep_moves_a_product_away_from_the_matrix(form, seed):
    out_shape, rank_shape, in_shape, terms = form
    target, _ = normalized(normal(prod(out_shape), prod(in_shape), seed=seed), prod(out_shape), prod(in_shape))
    a, b = drawn_sides(terms, out_shape, rank_shape, in_shape, seed)
    distance = torch.dist(target, product(a, b))
    for _ in range(10):
        a, b, _ = product_sweeps(target, a, b, 1, 0.0)
        before, distance = distance, torch.dist(target, product(a, b))
        assert distance <= before + 1e-9


@pytest.mark.parametrize("form", [((2, 2), (2, 2), (2, 2)), ((2, 2, 2), (2, 2, 2), (2, 2, 4))])
@pytest.mark.parametrize("seed", range(5))
def test_the_basis_between_a_and_b_does_not_drift(form, seed):
    matrix = normal(prod(form[0]), prod(form[2]), seed=seed)
    for start in (None, drawn_sides(1, *form, seed)):
        found = fit_product(matrix, *form, 1, start=start)
        a, b = kron_sum(*found.a), kron_sum(*found.b)
        assert a.norm() * b.norm() < 3 * (b @ a).norm()
        alike = zip(
            sweeps._partial_grams(found.a), sweeps._partial_grams(sweeps._transposed_factors(found.b)), strict=True
        )
        for gram_a, gram_b in alike:
            assert_close(gram_a, gram_b, atol=1e-4 * float(gram_a.trace()), rtol=0)


@settings(max_examples=10)
@given(forms(), SEEDS)
def test_no_sweep_moves_a_row_space_away_from_the_rows(form, seed):
    _, rank_shape, in_shape, terms = form
    target, _ = normalized(normal(prod(rank_shape), prod(in_shape), seed=seed), prod(rank_shape), prod(in_shape))
    a = drawn(terms, rank_shape, in_shape, seed)
    distance = torch.dist(target, target @ projection(a))
    for _ in range(10):
        a, _ = row_space_sweeps(target, a, 1, 0.0)
        before, distance = distance, torch.dist(target, target @ projection(a))
        assert distance <= before + 1e-6


# TensorLy


def steps(matrix, factors, count):
    """Alternating least squares on A alone: B is the identity."""
    for _ in range(count):
        factors = sweeps._step(factors, torch.eye(len(matrix), dtype=torch.float64), matrix)
    return factors


def test_where_b_is_orthonormal_steps_on_a_end_at_tensorlys_tensor_train_matrix():
    (r1, r2), (n1, n2) = rank_shape, in_shape = (3, 4), (4, 5)
    matrix = decaying(12, 20)
    found = steps(matrix, drawn(3, rank_shape, in_shape), 300)
    cores = tensor_train_matrix(matrix.reshape(r1, r2, n1, n2).numpy(), rank=[1, 3, 1])
    train = tensorly.tt_matrix_to_tensor(cores).reshape(r1 * r2, n1 * n2)
    assert_close(kron_sum(*found).numpy(), train, atol=1e-6, rtol=0)


def parafac_error(matrix, rank_shape, in_shape, terms, seed=0):
    tensor = rearrange(matrix, rank_shape, in_shape).numpy()
    cp = parafac(tensor, terms, init="random", n_iter_max=1000, tol=1e-10, random_state=seed)
    return float(np.linalg.norm(tensor - tensorly.cp_to_tensor(cp)) / np.linalg.norm(tensor))


@pytest.mark.parametrize("seed", range(2))
def test_steps_on_three_factors_and_tensorlys_parafac_both_recover_a_separable_matrix(seed):
    rank_shape, in_shape = (2, 2, 2), (3, 4, 3)
    matrix = kron_sum(*drawn(3, rank_shape, in_shape, seed))
    found = steps(matrix, drawn(3, rank_shape, in_shape, 50 + seed), 500)
    assert difference(kron_sum(*found), matrix) < 1e-6
    assert parafac_error(matrix, rank_shape, in_shape, 3) < 1e-4


@pytest.mark.parametrize("seed", range(2))
def test_steps_on_three_factors_reach_the_error_of_tensorlys_parafac(seed):
    rank_shape, in_shape = (2, 2, 2), (3, 4, 3)
    matrix = normal(8, 36, seed=seed)
    ours = min(difference(kron_sum(*steps(matrix, drawn(3, rank_shape, in_shape, s), 300)), matrix) for s in range(3))
    theirs = min(parafac_error(matrix, rank_shape, in_shape, 3, s) for s in range(3))
    assert ours == pytest.approx(theirs, rel=0.02)
