import re
import warnings
from math import prod

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from lsr.algebra import spectrum
from lsr.algebra.fit import fit_product, fit_row_space
from lsr.algebra.separable import condition_number, kron_sum, nearest_kron_sum
from lsr.algebra.shapes import max_separation_rank
from lsr.algebra.spectrum import leading_svd
from tests.lsr.algebra.problems import (
    FORMS,
    PLAIN,
    SEEDS,
    decaying,
    difference,
    drawn,
    drawn_sides,
    forms,
    normal,
    orthogonal,
    product,
    projection,
)

# A product


@pytest.mark.parametrize(("count", "terms", "seed"), [(2, 1, 0), (2, 2, 1), (2, 3, 5), (3, 1, 0), (3, 2, 1), (3, 3, 2)])
def test_a_product_of_separable_factors_is_recovered(count, terms, seed):
    out_shape, rank_shape, in_shape = FORMS[count]
    a, b = drawn(terms, rank_shape, in_shape, 100 * seed), drawn(terms, out_shape, rank_shape, 100 * seed + 50)
    found = fit_product(product(a, b), out_shape, rank_shape, in_shape, terms)
    assert found.error < 1e-6
    assert difference(product(found.a, found.b), product(a, b)) < 1e-6


@pytest.mark.parametrize("count", FORMS)
@pytest.mark.parametrize("terms", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_a_product_is_recovered_from_near_its_factors(count, terms, seed):
    a, b = drawn_sides(terms, *FORMS[count], seed)
    near = [[factor + 0.02 * normal(*factor.shape, seed=7) for factor in side] for side in (a, b)]
    assert fit_product(product(a, b), *FORMS[count], terms, start=tuple(near)).error < 1e-6


@settings(max_examples=10)
@given(forms(), SEEDS)
def test_the_error_of_a_product_is_its_relative_distance_to_the_matrix(form, seed):
    out_shape, rank_shape, in_shape, terms = form
    matrix = normal(prod(out_shape), prod(in_shape), seed=seed)
    found = fit_product(matrix, out_shape, rank_shape, in_shape, terms)
    assert found.error == pytest.approx(difference(product(found.a, found.b), matrix), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("count", FORMS)
def test_a_fitted_product_is_stationary_in_every_factor(count):
    matrix = decaying(*(prod(shape) for shape in FORMS[count][::2]))
    found = fit_product(matrix, *FORMS[count], 2, sweeps=5000, tolerance=1e-14)
    a, b = ([factor.requires_grad_() for factor in side] for side in (found.a, found.b))
    (matrix - product(a, b)).square().sum().backward()
    for factor in (*a, *b):
        assert factor.grad.norm() < 1e-5 * matrix.square().sum()


@settings(max_examples=10)
@given(forms(), SEEDS)
def test_a_fit_is_no_worse_than_its_sides_decomposed_one_by_one(form, seed):
    out_shape, rank_shape, in_shape, terms = form
    matrix = normal(prod(out_shape), prod(in_shape), seed=seed)
    left, values, right = leading_svd(matrix, prod(rank_shape), 0)
    a = nearest_kron_sum(values.sqrt()[:, None] * right, rank_shape, in_shape, terms)
    b = nearest_kron_sum(left * values.sqrt(), out_shape, rank_shape, terms)
    found = fit_product(matrix, out_shape, rank_shape, in_shape, terms)
    assert found.error <= difference(product(a, b), matrix) + 1e-12


@given(forms(), SEEDS)
@settings(max_examples=10)
def test_with_all_terms_a_product_is_the_truncated_svd(form, seed):
    out_shape, rank_shape, in_shape, _ = form
    out_shape, rank_shape, in_shape = out_shape[:2], rank_shape[:2], in_shape[:2]
    terms = max_separation_rank(rank_shape, in_shape)
    if terms != max_separation_rank(rank_shape, out_shape):
        in_shape = out_shape
        terms = max_separation_rank(rank_shape, in_shape)
    matrix = normal(prod(out_shape), prod(in_shape), seed=seed)
    tail = torch.linalg.svdvals(matrix)[prod(rank_shape) :].norm() / matrix.norm()
    assert fit_product(matrix, out_shape, rank_shape, in_shape, terms).error == pytest.approx(float(tail), abs=1e-7)


@pytest.mark.parametrize("count", FORMS)
def test_a_fitted_product_is_balanced_with_canonical_signs(count):
    found = fit_product(decaying(*(prod(shape) for shape in FORMS[count][::2])), *FORMS[count], 3)
    assert_close(kron_sum(*found.a).norm(), kron_sum(*found.b).norm())
    for first, *frame in (found.a, found.b):
        for factor in frame:
            terms = factor.flatten(1)
            assert_close(terms.norm(dim=1), first.flatten(1).norm(dim=1))
            assert (terms.gather(1, terms.abs().argmax(dim=1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("scale", [-1.0, 1e-12, 1e12])
def test_a_multiple_of_the_matrix_gives_that_multiple_of_the_product(scale):
    one, two = (fit_product(factor * decaying(48, 48), *PLAIN, 4) for factor in (1.0, scale))
    assert two.error == pytest.approx(one.error)
    assert difference(product(two.a, two.b), scale * product(one.a, one.b)) < 1e-6


# The same matrix in other clothes


@pytest.mark.parametrize("inner", [4, 7, 60])
@pytest.mark.parametrize("count", FORMS)
def test_a_pair_is_fitted_as_its_product_is(count, inner):
    rows, columns = (prod(shape) for shape in FORMS[count][::2])
    left, right = normal(rows, inner), normal(inner, columns, seed=1)
    pair, dense = fit_product((left, right), *FORMS[count], 3), fit_product(left @ right, *FORMS[count], 3)
    assert pair.error == pytest.approx(dense.error, rel=1e-6)
    assert difference(product(pair.a, pair.b), product(dense.a, dense.b)) < 1e-5


@pytest.mark.parametrize("is_pair", [False, True])
def test_the_error_of_an_exact_fit_does_not_cancel(is_pair):
    a, b = drawn_sides(2, *PLAIN, 3)
    matrix = (kron_sum(*b), kron_sum(*a)) if is_pair else product(a, b)
    assert fit_product(matrix, *PLAIN, 2, start=(a, b)).error < 1e-14


def test_a_pair_is_never_multiplied_out():
    width = 100_000  # squared: 80 GB
    pair = normal(width, 4), normal(4, width, seed=1)
    with pytest.warns(UserWarning, match="converge"):
        found = fit_product(pair, (400, 250), (2, 2), (250, 400), 2, sweeps=1)
    assert 0 < found.error < 1


@pytest.mark.parametrize("terms", [2, 8])
def test_a_pair_of_lower_rank_than_the_fit_is_fitted_as_well_as_from_random_factors(terms):
    pair = normal(48, 2), normal(2, 48, seed=1)
    found = fit_product(pair, *PLAIN, terms, tolerance=1e-6, sweeps=1000)
    others = [
        fit_product(pair, *PLAIN, terms, start=drawn_sides(terms, *PLAIN, seed), tolerance=1e-6, sweeps=1000).error
        for seed in range(3)
    ]
    assert found.error < min(others) + 0.03  # local optima: which one is found changes with the rounding of a machine


@pytest.mark.parametrize("seed", range(3))
def test_flipped_rows_flip_the_rows_of_the_product(seed):
    draws = np.random.default_rng(seed)
    signs = torch.kron(*(torch.tensor(draws.choice([-1.0, 1.0], size)) for size in PLAIN[0]))
    matrix = decaying(48, 48, seed)
    plain, flipped = fit_product(matrix, *PLAIN, 4), fit_product(signs[:, None] * matrix, *PLAIN, 4)
    assert difference(signs[:, None] * product(flipped.a, flipped.b), product(plain.a, plain.b)) < 1e-4


@pytest.mark.parametrize("driver", ["gesdd", "gesvd"])
@pytest.mark.parametrize("seed", range(3))
def test_the_product_does_not_depend_on_the_signs_that_an_svd_returns(monkeypatch, driver, seed):
    matrix = decaying(48, 48, seed)
    plain = fit_product(matrix, *PLAIN, 4)

    def svd(dense, method, n_eigenvecs):
        left, values, right = scipy.linalg.svd(dense, full_matrices=False, lapack_driver=driver)
        flips = np.random.default_rng(seed).choice([-1.0, 1.0], len(values))
        return (left * flips)[:, :n_eigenvecs], values[:n_eigenvecs], (right * flips[:, None])[:n_eigenvecs]

    monkeypatch.setattr(spectrum, "svd_interface", svd)
    other = fit_product(matrix, *PLAIN, 4)
    assert difference(product(other.a, other.b), product(plain.a, plain.b)) < 1e-4


@pytest.mark.parametrize("seed", range(3))
def test_a_matrix_in_single_precision_gives_nearly_the_same_product(seed):
    matrix = decaying(48, 48, seed)
    double, single = fit_product(matrix, *PLAIN, 4), fit_product(matrix.float(), *PLAIN, 4)
    assert single.a[0].dtype is torch.float64
    assert difference(product(single.a, single.b), product(double.a, double.b)) < 1e-4


@pytest.mark.parametrize("shape", [(48, 48), (48, 80), (80, 48)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_large_matrix_gives_nearly_the_same_product(monkeypatch, shape, dtype):
    forms = {48: (8, 6), 80: (8, 10)}
    matrix = decaying(*shape)
    small = fit_product(matrix, forms[shape[0]], (2, 2), forms[shape[1]], 4)
    monkeypatch.setattr(spectrum, "LARGE", 1)
    large = fit_product(matrix.to(dtype), forms[shape[0]], (2, 2), forms[shape[1]], 4)
    assert not torch.equal(large.a[0], small.a[0])
    assert difference(product(large.a, large.b), product(small.a, small.b)) < 1e-4
    assert large.error == pytest.approx(difference(product(large.a, large.b), matrix), rel=1e-6)


@pytest.mark.parametrize("limit", [1, spectrum.LARGE])
def test_the_same_matrix_gives_the_same_bytes_and_leaves_numpys_random_numbers_alone(monkeypatch, limit):
    monkeypatch.setattr(spectrum, "LARGE", limit)
    state = np.random.get_state()[1].copy()
    one, two = (fit_product(normal(48, 48), *PLAIN, 4, seed=3) for _ in range(2))
    assert [f.numpy().tobytes() for f in (*one.a, *one.b)] == [f.numpy().tobytes() for f in (*two.a, *two.b)]
    assert np.array_equal(np.random.get_state()[1], state)


def test_a_fit_leaves_the_number_of_threads_alone(monkeypatch):
    counts = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    fit_product(decaying(48, 48), *PLAIN, 2)
    with pytest.raises(ValueError, match="nothing to fit"):
        fit_row_space(torch.zeros(4, 48), *PLAIN[1:], 2)
    assert counts == [1, 7, 1, 7]


def test_a_trainable_matrix_gives_factors_without_a_gradient():
    found = fit_product(decaying(48, 48).requires_grad_(), *PLAIN, 2)
    rows = fit_row_space(decaying(48, 48)[:6].requires_grad_(), *PLAIN[1:], 2)
    assert not any(factor.requires_grad for factor in (*found.a, *found.b, *rows.a))


@pytest.mark.parametrize("kind", ["rank one", "padded", "single entry", "start of zeros"])
def test_a_deficient_matrix_gives_finite_factors(kind):
    matrix, start = normal(48, 48), None
    if kind == "rank one":
        matrix = matrix[:, :1] @ matrix[:1]
    elif kind == "padded":
        matrix[:, -5:] = matrix[-3:] = 0
    elif kind == "single entry":
        matrix = torch.zeros(48, 48, dtype=torch.float64)
        matrix[3, 4] = 1.0
    else:
        start = tuple([torch.zeros_like(f) for f in side] for side in drawn_sides(4, *PLAIN))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fit_product(matrix, *PLAIN, 4, start=start)
        rows = fit_row_space(matrix[:4], *PLAIN[1:], 4, start=start and start[0])
    assert all(torch.isfinite(factor).all() for factor in (*found.a, *found.b, *rows.a))
    assert 0 <= found.error <= 1


# A row space


@settings(max_examples=10)
@given(forms(), SEEDS, st.integers(0, 3))
def test_the_error_of_a_row_space_is_what_its_projection_leaves(form, seed, more):
    _, rank_shape, in_shape, terms = form
    rows = normal(prod(rank_shape) + more, prod(in_shape), seed=seed)
    if more and prod(rank_shape) > min(rows.shape):
        return
    found = fit_row_space(rows, rank_shape, in_shape, terms)
    assert found.error == pytest.approx(difference(rows @ projection(found.a), rows), rel=1e-9, abs=1e-12)


@settings(max_examples=10)
@given(forms(), SEEDS)
def test_a_row_space_overlaps_no_less_than_the_nearest_kronecker_sum(form, seed):
    _, rank_shape, in_shape, terms = form
    rows = orthogonal(prod(in_shape), seed)[: prod(rank_shape)]
    naive = nearest_kron_sum(rows, rank_shape, in_shape, terms)
    overlaps = [
        float((rows @ projection(a)).square().sum())
        for a in (fit_row_space(rows, rank_shape, in_shape, terms).a, naive)
    ]
    assert overlaps[0] >= overlaps[1] - 1e-9


def test_a_row_space_overlaps_far_more_than_the_nearest_kronecker_sum_where_that_does_not_fit():
    a = kron_sum(*drawn(2, (4, 4), (6, 8)))
    rows = torch.linalg.qr(normal(16, 16) @ a).Q.T @ a  # the same space in another basis
    naive = nearest_kron_sum(torch.linalg.qr(rows.T).Q.T, (4, 4), (6, 8), 2)
    basis = torch.linalg.qr(a.T).Q
    found = fit_row_space(rows, (4, 4), (6, 8), 2)
    fitted, plain = ((projection(factors) @ basis).square().sum() / 16 for factors in (found.a, naive))
    assert fitted > 1.5 * plain


@settings(max_examples=10)
@given(forms(), SEEDS)
def test_with_all_terms_every_row_space_is_reached(form, seed):
    _, rank_shape, in_shape, _ = form
    rank_shape, in_shape = rank_shape[:2], in_shape[:2]
    rows = normal(prod(rank_shape), prod(in_shape), seed=seed)
    assert fit_row_space(rows, rank_shape, in_shape, max_separation_rank(rank_shape, in_shape)).error < 1e-9


@pytest.mark.parametrize("count", FORMS)
@pytest.mark.parametrize("terms", [1, 2])
def test_the_row_space_of_separable_rows_is_recovered_from_near_it(count, terms):
    _, rank_shape, in_shape = FORMS[count]
    a = drawn(terms, rank_shape, in_shape)
    near = [factor + 0.02 * normal(*factor.shape, seed=7) for factor in a]
    rows = normal(9, prod(rank_shape), seed=5) @ kron_sum(*a)
    assert fit_row_space(rows, rank_shape, in_shape, terms, start=near).error < 1e-6


@pytest.mark.parametrize("more", [0, 3])
@pytest.mark.parametrize("seed", range(3))
def test_a_row_space_depends_on_the_row_space_alone(seed, more):
    _, rank_shape, in_shape = PLAIN
    rows = decaying(4 + more, 48, seed)
    start = nearest_kron_sum(rows[:4], rank_shape, in_shape, 3) if not more else None  # with more it is canonical
    one, two = (
        fit_row_space(turn @ rows, rank_shape, in_shape, 3, start=start)
        for turn in (torch.eye(4 + more, dtype=torch.float64), orthogonal(4 + more, seed + 5))
    )
    assert difference(projection(two.a), projection(one.a)) < 1e-4


@pytest.mark.parametrize("count", FORMS)
def test_a_row_space_has_unit_frames_and_the_norm_of_orthonormal_rows(count):
    _, rank_shape, in_shape = FORMS[count]
    found = fit_row_space(decaying(prod(rank_shape), prod(in_shape)), rank_shape, in_shape, 3)
    assert_close(kron_sum(*found.a).square().sum().item(), float(prod(rank_shape)))
    for factor in found.a[1:]:
        assert_close(factor.flatten(1).norm(dim=1), torch.ones(3, dtype=torch.float64))
    if count == 2:
        assert condition_number(*found.a) == pytest.approx(1)


def test_a_row_space_of_a_large_matrix_is_nearly_the_same(monkeypatch):
    rows = decaying(60, 48)
    small = fit_row_space(rows, *PLAIN[1:], 3)
    monkeypatch.setattr(spectrum, "LARGE", 1)
    large = fit_row_space(rows.float(), *PLAIN[1:], 3)
    assert difference(projection(large.a), projection(small.a)) < 1e-4


@pytest.mark.parametrize("seed", range(3))
def test_a_row_space_comes_as_the_same_bytes(seed):
    one, two = (fit_row_space(normal(6, 48, seed=seed), *PLAIN[1:], 3) for _ in range(2))
    assert [f.numpy().tobytes() for f in one.a] == [f.numpy().tobytes() for f in two.a]


# What is said


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("is_pair", [False, True])
def test_a_matrix_that_is_not_finite_is_refused(value, is_pair):
    left, right = normal(48, 4), normal(4, 48)
    left[3, 2] = value
    with pytest.raises(ValueError, match=r"expected a finite matrix to fit, got one of norm (nan|inf)"):
        fit_product((left, right) if is_pair else left @ right, *PLAIN, 2)
    with pytest.raises(ValueError, match="expected a finite matrix to fit"):
        fit_row_space((left @ right)[:4], *PLAIN[1:], 2)


def test_a_zero_matrix_is_refused():
    zero = torch.zeros(48, 48, dtype=torch.float64)
    for attempt in (
        lambda: fit_product(zero, *PLAIN, 2),
        lambda: fit_product((zero[:, :4], zero[:4]), *PLAIN, 2),
        lambda: fit_row_space(zero, *PLAIN[1:], 2),
    ):
        with pytest.raises(ValueError, match=r"^nothing to fit: the matrix is zero$"):
            attempt()


@pytest.mark.parametrize("terms", [0, 7])
def test_more_terms_than_either_side_can_use_are_refused_with_the_bounds(terms):
    message = re.escape(f"separation_rank must be in [1, 6] for these shapes, got {terms}")
    for out_shape, in_shape in (((8, 6), (6, 8)), ((6, 8), (8, 6))):  # 8 and 6 terms, 6 and 8
        with pytest.raises(ValueError, match=f"^{message}$"):
            fit_product(normal(48, 48), out_shape, (1, 2), in_shape, terms)
    with pytest.raises(ValueError, match=f"^{message}$"):
        fit_row_space(normal(4, 48), (1, 2), (6, 8), terms)


@pytest.mark.parametrize(
    ("matrix", "shown"), [(normal(48, 47), "(48, 47)"), ((normal(48, 4), normal(4, 40)), "(48, 4) and (4, 40)")]
)
def test_a_matrix_of_another_shape_is_refused_with_both(matrix, shown):
    with pytest.raises(ValueError, match=f"^{re.escape(f'expected a matrix 48 x 48, got {shown}')}$"):
        fit_product(matrix, *PLAIN, 2)


def test_a_rank_beyond_the_matrix_is_refused_with_the_bounds():
    with pytest.raises(ValueError, match=re.escape("the rank must be in [1, 3] for a matrix (3, 48), got 4")):
        fit_product(normal(3, 48), (3, 1), (2, 2), (6, 8), 2)
    with pytest.raises(ValueError, match="fitting a row space of rank 4 needs at least as many rows, got 3"):
        fit_row_space(normal(3, 48), *PLAIN[1:], 2)


def test_factors_of_other_shapes_to_start_from_are_refused_with_the_shapes():
    a, b = drawn_sides(2, *PLAIN)
    shapes = re.escape("expected factors [(3, 2, 6), (3, 2, 8)] to start from, got [(2, 2, 6), (2, 2, 8)]")
    with pytest.raises(ValueError, match=f"^{shapes}$"):
        fit_product(normal(48, 48), *PLAIN, 3, start=(a, b))
    with pytest.raises(ValueError, match=f"^{shapes}$"):
        fit_row_space(normal(4, 48), *PLAIN[1:], 3, start=a)
    with pytest.raises(ValueError, match=re.escape("expected factors [(2, 8, 2), (2, 6, 2)] to start from")):
        fit_product(normal(48, 48), *PLAIN, 2, start=(a, b[::-1]))


def test_a_fit_that_is_cut_short_warns_of_its_last_change():
    for attempt in (
        lambda: fit_product(normal(48, 48), *PLAIN, 3, sweeps=2, tolerance=0.0),
        lambda: fit_row_space(normal(6, 48), *PLAIN[1:], 3, sweeps=2, tolerance=0.0),
    ):
        with pytest.warns(
            UserWarning, match=r"did not converge in 2 sweeps: the last one .* by \d\.\de-\d\d$"
        ) as caught:
            found = attempt()
        assert f"{found.change:.1e}" in str(caught[0].message)
        assert caught[0].filename == __file__


def test_a_fit_that_has_converged_does_not_warn(recwarn):
    assert fit_product(normal(48, 48), *PLAIN, 3).change < 1e-3
    assert fit_row_space(normal(6, 48), *PLAIN[1:], 3).change < 1e-3
    assert not recwarn
