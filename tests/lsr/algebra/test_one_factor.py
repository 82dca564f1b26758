"""With one factor a side there is nothing to separate: sums are the matrix, fits are the truncated SVD."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from lsr.algebra.fit import fit_product, fit_row_space
from lsr.algebra.separable import balance, condition_number, kron_sum, nearest_kron_sum, recondition
from lsr.algebra.stacked import Product, sum_products
from tests.lsr.algebra.problems import SEEDS, decaying, difference, normal, product, projection

SIZES = st.integers(1, 6)


@st.composite
def problems(draw):
    """A matrix and a rank that it can have."""
    rows, columns = draw(SIZES), draw(SIZES)
    return normal(rows, columns, seed=draw(SEEDS)), draw(st.integers(1, min(rows, columns)))


@given(SIZES, SIZES, st.integers(1, 4), SEEDS)
def test_a_sum_is_that_of_its_terms_and_its_gradient_right(rows, columns, terms, seed):
    factor = normal(terms, rows, columns, seed=seed).requires_grad_()
    assert_close(kron_sum(factor), torch.from_numpy(np.sum(factor.detach().numpy(), axis=0)))
    assert torch.autograd.gradcheck(kron_sum, [factor])


@given(SIZES, SIZES, SEEDS)
def test_the_nearest_sum_is_a_copy_of_the_matrix(rows, columns, seed):
    matrix = normal(rows, columns, seed=seed)
    (found,) = nearest_kron_sum(matrix, (rows,), (columns,), 1)
    assert torch.equal(found, matrix[None])
    found += 1
    assert torch.equal(matrix, normal(rows, columns, seed=seed))


def test_more_terms_than_one_are_refused():
    with pytest.raises(ValueError, match=r"separation_rank must be in \[1, 1\] for these shapes, got 2"):
        nearest_kron_sum(normal(4, 6), (4,), (6,), 2)
    for fit in (
        lambda: fit_product(normal(8, 6), (8,), (2,), (6,), 2),
        lambda: fit_row_space(normal(2, 6), (2,), (6,), 2),
    ):
        with pytest.raises(ValueError, match=r"separation_rank must be in \[1, 1\] for these shapes, got 2"):
            fit()


@given(SIZES, SIZES, st.integers(1, 3), SEEDS)
def test_nothing_is_reconditioned_nor_balanced(rows, columns, terms, seed):
    factor = normal(terms, rows, columns, seed=seed)
    for found in (recondition(factor), balance(factor)):
        assert len(found) == 1
        assert_close(found[0], factor)


@given(SIZES, SIZES, SEEDS)
def test_one_term_is_exact_and_well_conditioned(rows, columns, seed):
    matrix = normal(rows, columns, seed=seed)
    assert torch.equal(nearest_kron_sum(matrix, (rows,), (columns,), 1)[0][0], matrix)
    assert condition_number(matrix[None]) == pytest.approx(1)


@given(problems())
def test_a_fitted_product_is_the_truncated_svd(problem):
    matrix, rank = problem
    rows, columns = matrix.shape
    found = fit_product(matrix, (rows,), (rank,), (columns,), 1)
    left, values, right = np.linalg.svd(matrix.numpy(), full_matrices=False)
    best = torch.from_numpy((left[:, :rank] * values[:rank]) @ right[:rank])
    assert_close(product(found.a, found.b), best, atol=1e-8, rtol=0)
    error = float(np.linalg.norm(values[rank:]) / np.linalg.norm(values))
    assert found.error == pytest.approx(error, abs=1e-7)
    assert found.change == 0
    assert_close(found.a[0].norm(), found.b[0].norm())


def test_a_pair_is_fitted_as_the_product_that_it_is():
    left, right = normal(9, 4), normal(4, 7, seed=1)
    pair, dense = (fit_product(m, (9,), (3,), (7,), 1) for m in ((left, right), left @ right))
    assert_close(product(pair.a, pair.b), product(dense.a, dense.b))
    assert pair.error == pytest.approx(dense.error)


def test_what_a_product_is_to_start_from_does_not_matter():
    matrix = decaying(8, 6)
    plain = fit_product(matrix, (8,), (2,), (6,), 1)
    given_one = fit_product(matrix, (8,), (2,), (6,), 1, start=([normal(1, 2, 6)], [normal(1, 8, 2)]))
    assert_close([*given_one.a, *given_one.b], [*plain.a, *plain.b], atol=0, rtol=0)


@given(problems(), st.integers(0, 3))
def test_a_fitted_row_space_is_that_of_the_leading_singular_vectors(problem, seed):
    matrix, rank = problem
    columns = matrix.shape[1]
    found = fit_row_space(matrix, (rank,), (columns,), 1, seed=seed)
    _, values, right = np.linalg.svd(matrix.numpy(), full_matrices=False)
    leading = torch.from_numpy(right[:rank])
    assert_close(projection(found.a), leading.T @ leading, atol=1e-8, rtol=0)
    error = float(np.linalg.norm(values[rank:]) / np.linalg.norm(values))
    assert found.error == pytest.approx(error, abs=1e-7)
    assert float(found.a[0].square().sum()) == pytest.approx(rank)


@given(problems(), st.floats(-3, 3), st.floats(-3, 3), SEEDS)
def test_a_sum_of_products_is_exact_with_one_term(problem, one, two, seed):
    matrix, rank = problem
    rows, columns = matrix.shape
    sides = [([normal(1, r, columns, seed=seed + r)], [normal(1, rows, r, seed=seed + 9)]) for r in (rank, 2)]
    products = [Product(c, *side) for c, side in zip((one, two), sides, strict=True)]
    a, b = sum_products(products, rank + 2, 1)
    assert (a[0].shape, b[0].shape) == ((1, rank + 2, columns), (1, rows, rank + 2))
    expected = sum(c * b[0][0] @ a[0][0] for c, (a, b) in zip((one, two), sides, strict=True))
    assert_close(product(a, b), expected)


def test_a_product_of_the_rank_is_recovered():
    matrix = normal(9, 3) @ normal(3, 7, seed=1)
    found = fit_product(matrix, (9,), (3,), (7,), 1)
    assert difference(product(found.a, found.b), matrix) < 1e-9
