"""A fitted product: as near as it can be, and the same in whatever form the matrix comes."""

import re
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch.testing import assert_close

from lsr.algebra import fit, spectrum
from lsr.algebra.fit import fit_product, in_orthonormal_basis
from lsr.algebra.separable import kron_sum, nearest_kron_sum
from lsr.algebra.shapes import max_separation_rank
from lsr.algebra.spectrum import leading_svd
from tests.lsr.algebra.problems import FORMS, SEEDS, difference, drawn, forms, product
from tests.lsr.matrices import decaying, normal

PLAIN = FORMS[2]
TERMS = {1: 1, 2: 3}
each_count = pytest.mark.parametrize("count", FORMS)


def matrix_of(out_shape, in_shape):
    return decaying(prod(out_shape), prod(in_shape))


# How near it is


@settings(max_examples=5)
@given(forms(), SEEDS)
def test_the_error_is_the_distance_and_no_larger_than_that_of_sides_decomposed_one_by_one(form, seed):
    out_shape, rank_shape, in_shape, terms = form
    matrix = normal(prod(out_shape), prod(in_shape), seed=seed)
    found = fit_product(matrix, *form)
    assert found.error == pytest.approx(difference(product(found.a, found.b), matrix), rel=1e-9, abs=1e-12)
    left, values, right = leading_svd(matrix, prod(rank_shape))
    a = nearest_kron_sum(values.sqrt()[:, None] * right, rank_shape, in_shape, terms)
    b = nearest_kron_sum(left * values.sqrt(), out_shape, rank_shape, terms)
    assert found.error <= difference(product(a, b), matrix) + 1e-9


def test_a_fitted_product_is_stationary_in_every_factor():
    matrix = matrix_of(*PLAIN[::2])
    found = fit_product(matrix, *PLAIN, 2, sweeps=5000, tolerance=1e-14)
    a, b = ([factor.requires_grad_() for factor in side] for side in (found.a, found.b))
    (matrix - product(a, b)).square().sum().backward()
    for factor in (*a, *b):
        assert factor.grad.norm() < 1e-5 * matrix.square().sum()


@each_count
def test_with_all_terms_it_is_the_truncated_svd(count):
    out_shape, rank_shape, in_shape = FORMS[count]
    matrix, rank = matrix_of(out_shape, in_shape), prod(rank_shape)
    terms = min(max_separation_rank(rank_shape, shape) for shape in (out_shape, in_shape))
    found = fit_product(matrix, out_shape, rank_shape, in_shape, terms)
    left, values, right = np.linalg.svd(matrix.numpy(), full_matrices=False)
    best = torch.from_numpy((left[:, :rank] * values[:rank]) @ right[:rank])
    assert_close(product(found.a, found.b), best, atol=1e-6, rtol=0)
    assert found.error == pytest.approx(float(np.linalg.norm(values[rank:]) / np.linalg.norm(values)), abs=1e-7)


@each_count
def test_it_is_balanced_with_canonical_signs(count):
    found = fit_product(matrix_of(*FORMS[count][::2]), *FORMS[count], TERMS[count])
    assert_close(kron_sum(*found.a).norm(), kron_sum(*found.b).norm())
    for first, *others in (found.a, found.b):
        for factor in others:
            terms = factor.flatten(1)
            assert_close(terms.norm(dim=1), first.flatten(1).norm(dim=1))
            assert (terms.gather(1, terms.abs().argmax(dim=1, keepdim=True)) > 0).all()


@each_count
def test_an_orthonormal_basis_keeps_the_row_space(count):
    _, rank_shape, in_shape = FORMS[count]
    a = drawn(TERMS[count], rank_shape, in_shape)
    based = in_orthonormal_basis(a)
    one, two = (torch.linalg.qr(kron_sum(*factors).T).Q for factors in (a, based))
    assert_close(two @ two.T, one @ one.T, atol=1e-8, rtol=0)
    for gram in fit._partial_grams(based):
        assert_close(gram / gram.diagonal().mean(), torch.eye(len(gram), dtype=torch.float64), atol=0.2, rtol=0)
    if count == 1:
        assert_close(based[0][0] @ based[0][0].T / based[0][0, 0].square().sum(), torch.eye(4, dtype=torch.float64))


# The same matrix in other clothes


@each_count
def test_a_pair_is_fitted_as_its_product_is(count):
    rows, columns = (prod(shape) for shape in FORMS[count][::2])
    left, right = normal(rows, 7), normal(7, columns, seed=1)
    pair, dense = (fit_product(one, *FORMS[count], TERMS[count]) for one in ((left, right), left @ right))
    assert pair.error == pytest.approx(dense.error, rel=1e-6)
    assert difference(product(pair.a, pair.b), product(dense.a, dense.b)) < 1e-5


@pytest.mark.parametrize("large", [1, spectrum.LARGE])
def test_the_same_matrix_gives_the_same_bytes_and_leaves_all_else_alone(monkeypatch, large):
    counts = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    monkeypatch.setattr(spectrum, "LARGE", large)
    state = np.random.get_state()[1].copy()
    one, two = (fit_product(normal(48, 48).requires_grad_(), *PLAIN, 4, seed=3) for _ in range(2))
    assert [f.numpy().tobytes() for f in (*one.a, *one.b)] == [f.numpy().tobytes() for f in (*two.a, *two.b)]
    assert np.array_equal(np.random.get_state()[1], state)
    assert counts == [1, 7, 1, 7]


# What is said


@pytest.mark.parametrize(
    ("matrix", "form", "terms", "message"),
    [
        (torch.zeros(48, 48), PLAIN, 2, "nothing to fit: the matrix is zero"),
        (normal(48, 48), ((8, 6), (1, 2), (6, 8)), 7, "separation_rank must be in [1, 6] for these shapes, got 7"),
        (torch.full((48, 48), torch.nan), PLAIN, 2, "expected a finite matrix to fit, got one of norm nan"),
        ((normal(48, 4), normal(4, 40)), PLAIN, 2, "expected a matrix 48 x 48, got (48, 40)"),
        (normal(3, 48), ((3, 1), (2, 2), (6, 8)), 2, "the rank must be in [1, 3] for a matrix (3, 48), got 4"),
    ],
)
def test_what_cannot_be_fitted_is_refused_with_what_can(matrix, form, terms, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fit_product(matrix, *form, terms)


def test_a_fit_that_is_cut_short_warns_of_its_last_change_and_one_that_has_converged_does_not(recwarn):
    assert fit_product(normal(48, 48), *PLAIN, 3).change < 1e-3
    assert not recwarn
    with pytest.warns(UserWarning, match=r"did not converge in 2 sweeps: the last one .* by \d\.\de-\d\d$") as caught:
        found = fit_product(normal(48, 48), *PLAIN, 3, sweeps=2, tolerance=0.0)
    assert f"{found.change:.1e}" in str(caught[0].message)
    assert caught[0].filename == __file__
