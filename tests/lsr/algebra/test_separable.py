from functools import reduce
from itertools import pairwise
from math import prod

import numpy as np
import pytest
import scipy.linalg
import tensorly
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensorly.decomposition import parafac, tensor_train_matrix
from torch.testing import assert_close

from lsr.algebra.separable import (
    balance,
    condition_number,
    kron_sum,
    kron_sum_gradients,
    kron_sum_product,
    nearest_kron_sum,
    pad_columns,
    rearrange,
    recondition,
)

SIZES = st.integers(1, 4)
SEEDS = st.integers(0, 999)
SHAPES = {2: ((2, 3), (4, 5)), 3: ((2, 2, 2), (3, 4, 2))}  # rows, columns


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def matrix_of(rows, columns, seed=0):
    return normal(prod(rows), prod(columns), seed=seed)


@st.composite
def factor_lists(draw, least=2, most=4):
    """Between two and four stacks of small matrices with equally many terms."""
    terms = draw(SIZES)
    sizes = draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=least, max_size=most))
    return [normal(terms, p, q, seed=draw(SEEDS)) for p, q in sizes]


@st.composite
def pair_shapes(draw):
    """Row shape, column shape, and every possible number of terms for a matrix of two factors."""
    rows, columns = draw(st.tuples(SIZES, SIZES)), draw(st.tuples(SIZES, SIZES))
    return rows, columns, min(rows[0] * columns[0], rows[1] * columns[1])


def relative_error(matrix, factors):
    return float((matrix - kron_sum(*factors)).norm() / matrix.norm())


# The sum


@given(factor_lists())
def test_a_kron_sum_is_the_sum_of_kronecker_products(factors):
    dense = sum(reduce(torch.kron, term) for term in zip(*factors, strict=True))
    assert_close(kron_sum(*factors), dense)


@given(factor_lists(most=2), st.booleans())
def test_the_gradients_of_both_factors_are_those_of_the_dense_sum(factors, is_cropped):
    left, right = (factor.requires_grad_() for factor in factors)
    total = kron_sum(left, right)
    total = total[: max(1, len(total) - is_cropped), : max(1, total.shape[1] - is_cropped)]
    gradient = normal(*total.shape, seed=5)
    expected = torch.autograd.grad(total, (left, right), gradient)
    for found, wanted in zip(kron_sum_gradients(gradient, left, right), expected, strict=True):
        assert_close(found, wanted)


@given(factor_lists(most=2), st.integers(0, 3), st.integers(0, 2))
def test_a_product_by_factors_is_that_of_the_matrix(factors, tokens, missing):
    matrix = kron_sum(*factors)
    x = normal(tokens, max(matrix.shape[1] - missing, 1))
    assert_close(kron_sum_product(x, *factors), x @ matrix[:, : x.shape[1]].T)


@given(factor_lists(most=3))
def test_the_gradient_of_a_kron_sum_is_right(factors):
    assert torch.autograd.gradcheck(kron_sum, [factor.requires_grad_() for factor in factors])


@pytest.mark.parametrize("shapes", [[], [(2, 3, 4), (3, 3, 4)], [(2, 1, 1), (2, 1, 1), (1, 1, 1)]])
def test_factors_that_do_not_pair_up_are_refused_with_their_shapes(shapes):
    with pytest.raises(ValueError, match="expected factors with equally many terms, got") as error:
        kron_sum(*[normal(*shape) for shape in shapes])
    assert str(shapes) in str(error.value)


# The rearrangement


@given(factor_lists(most=4))
def test_the_rearranged_kronecker_product_is_the_outer_product_of_its_factors(factors):
    single = [factor[0] for factor in factors]
    rearranged = rearrange(reduce(torch.kron, single), tuple(len(f) for f in single), tuple(f.shape[1] for f in single))
    outer = reduce(lambda left, right: torch.tensordot(left, right, 0), [factor.flatten() for factor in single])
    assert_close(rearranged, outer)


@pytest.mark.parametrize("count", SHAPES)
def test_rearranging_only_moves_entries(count):
    rows, columns = SHAPES[count]
    matrix = torch.arange(prod(rows) * prod(columns)).reshape(prod(rows), prod(columns))
    rearranged = rearrange(matrix, rows, columns)
    assert rearranged.shape == tuple(p * q for p, q in zip(rows, columns, strict=True))
    assert torch.equal(rearranged.flatten().sort().values, matrix.flatten())


@given(pair_shapes(), SEEDS)
def test_rearranging_keeps_distances(shapes, seed):
    rows, columns, _ = shapes
    one, two = matrix_of(rows, columns, seed=seed), matrix_of(rows, columns, seed=seed + 1)
    assert_close(torch.dist(rearrange(one, rows, columns), rearrange(two, rows, columns)), torch.dist(one, two))


# The nearest sum, two factors


@given(pair_shapes(), SEEDS, st.data())
def test_the_error_of_two_factors_is_the_tail_of_the_singular_values(shapes, seed, data):
    rows, columns, limit = shapes
    rank = data.draw(st.integers(1, limit))
    matrix = matrix_of(rows, columns, seed=seed)
    tail = torch.linalg.svdvals(rearrange(matrix, rows, columns))[rank:].norm()
    assert_close(torch.dist(matrix, kron_sum(*nearest_kron_sum(matrix, rows, columns, rank))), tail)


@given(pair_shapes(), SEEDS)
def test_nothing_random_beats_the_nearest_sum(shapes, seed):
    rows, columns, limit = shapes
    rank = max(1, limit // 2)
    matrix = matrix_of(rows, columns, seed=seed)
    nearest = nearest_kron_sum(matrix, rows, columns, rank)
    for trial in range(5):
        moved = [factor + 0.1 * normal(*factor.shape, seed=seed + 7 * trial) for factor in nearest]
        assert torch.dist(matrix, kron_sum(*nearest)) <= torch.dist(matrix, kron_sum(*moved)) + 1e-12


@given(pair_shapes(), SEEDS)
def test_the_error_falls_with_every_further_term_and_ends_at_zero(shapes, seed):
    rows, columns, limit = shapes
    matrix = matrix_of(rows, columns, seed=seed)
    errors = [relative_error(matrix, nearest_kron_sum(matrix, rows, columns, rank)) for rank in range(1, limit + 1)]
    assert all(after < before + 1e-12 for before, after in pairwise(errors))
    assert errors[-1] < 1e-12


@given(pair_shapes(), SEEDS)
def test_all_factors_but_the_first_have_orthonormal_terms(shapes, seed):
    rows, columns, limit = shapes
    _, second = nearest_kron_sum(matrix_of(rows, columns, seed=seed), rows, columns, limit)
    assert_close(second.flatten(1) @ second.flatten(1).T, torch.eye(limit, dtype=torch.float64))


@pytest.mark.parametrize("driver", ["gesdd", "gesvd"])
@pytest.mark.parametrize("seed", range(3))
def test_the_factors_do_not_depend_on_the_signs_that_an_svd_returns(driver, seed):
    rows, columns = SHAPES[2]
    matrix = matrix_of(rows, columns, seed=seed)
    left, sigma, right = scipy.linalg.svd(rearrange(matrix, rows, columns).numpy(), False, lapack_driver=driver)
    flips = np.random.default_rng(seed).choice([-1.0, 1.0], len(sigma))
    left, right = left * flips, right * flips[:, None]
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
    first, second = nearest_kron_sum(matrix, rows, columns, 4)
    assert_close(first.flatten(1).numpy(), (left * sigma * signs).T[:4])
    assert_close(second.flatten(1).numpy(), (right * signs[:, None])[:4])


def test_tensorlys_tensor_train_matrix_finds_the_same_two_factors():
    (p1, p2), (q1, q2) = rows, columns = SHAPES[2]
    matrix = matrix_of(rows, columns)
    cores = tensor_train_matrix(matrix.reshape(p1, p2, q1, q2).numpy(), rank=[1, 3, 1])
    train = tensorly.tt_matrix_to_tensor(cores).reshape(p1 * p2, q1 * q2)
    assert_close(kron_sum(*nearest_kron_sum(matrix, rows, columns, 3)).numpy(), train)


def test_tensorlys_parafac_reaches_the_error_of_the_two_factors_and_no_less():
    rows, columns = SHAPES[2]
    matrix = matrix_of(rows, columns)
    tensor = rearrange(matrix, rows, columns).numpy()
    cp = parafac(tensor, 3, init="svd", n_iter_max=2000, tol=1e-14, random_state=0)
    alternating = np.linalg.norm(tensor - tensorly.cp_to_tensor(cp)) / np.linalg.norm(tensor)
    assert alternating == pytest.approx(relative_error(matrix, nearest_kron_sum(matrix, rows, columns, 3)), rel=1e-6)


# The nearest sum, three factors


@pytest.mark.parametrize("rank", [1, 4, 8])
@pytest.mark.parametrize("seed", range(3))
def test_three_factors_come_nearer_than_their_random_start_could(rank, seed):
    rows, columns = SHAPES[3]
    matrix = matrix_of(rows, columns, seed=seed)
    draws = np.random.default_rng(0)
    start = [draws.standard_normal((p * q, rank)) for p, q in zip(rows, columns, strict=True)]
    terms = np.stack([reduce(np.multiply.outer, [f[:, k] for f in start]).ravel() for k in range(rank)], axis=1)
    target = rearrange(matrix, rows, columns).numpy().ravel()
    residual = target - terms @ np.linalg.lstsq(terms, target, rcond=None)[0]
    best_weights = np.linalg.norm(residual) / np.linalg.norm(target)
    assert relative_error(matrix, nearest_kron_sum(matrix, rows, columns, rank)) < best_weights


@pytest.mark.parametrize("terms", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_three_factors_recover_a_separable_matrix(terms, seed):
    rows, columns = SHAPES[3]
    exact = [normal(terms, p, q, seed=seed + i) for i, (p, q) in enumerate(zip(rows, columns, strict=True))]
    matrix = kron_sum(*exact)
    assert relative_error(matrix, nearest_kron_sum(matrix, rows, columns, terms)) < 0.01


@pytest.mark.parametrize("terms", [1, 4, 12, 24])
def test_no_term_of_three_factors_is_dead_where_fewer_would_do(terms):
    rows, columns = SHAPES[3]
    matrix = kron_sum(*[normal(1, p, q, seed=p + q) for p, q in zip(rows, columns, strict=True)])
    first, *frame = nearest_kron_sum(matrix, rows, columns, terms)
    assert torch.isfinite(first).all()
    for factor in frame:
        assert_close(factor.flatten(1).norm(dim=1), torch.ones(terms, dtype=torch.float64))


@pytest.mark.parametrize("count", SHAPES)
@pytest.mark.parametrize("kind", ["rank one", "padded", "single entry", "zero"])
def test_a_deficient_matrix_gives_finite_factors_without_a_dead_term(count, kind):
    rows, columns = SHAPES[count]
    matrix = matrix_of(rows, columns)
    if kind == "rank one":
        matrix = matrix[:, :1] @ matrix[:1]
    elif kind == "padded":
        matrix[:, -5:] = 0
    else:
        single = 1.0 if kind == "single entry" else 0.0
        matrix = torch.zeros_like(matrix)
        matrix[0, 0] = single
    first, *frame = nearest_kron_sum(matrix, rows, columns, 6)
    assert torch.isfinite(first).all()
    for factor in frame:
        assert_close(factor.flatten(1).norm(dim=1), torch.ones(6, dtype=torch.float64))


# Both


@pytest.mark.parametrize("count", SHAPES)
def test_the_same_matrix_gives_the_same_bytes(count):
    rows, columns = SHAPES[count]
    matrix = matrix_of(rows, columns)
    one, two = nearest_kron_sum(matrix, rows, columns, 5), nearest_kron_sum(matrix, rows, columns, 5)
    assert [f.numpy().tobytes() for f in one] == [f.numpy().tobytes() for f in two]


@pytest.mark.parametrize("count", SHAPES)
def test_the_callers_tensorly_backend_and_random_numbers_are_left_alone(count):
    rows, columns = SHAPES[count]
    state = np.random.get_state()[1].copy()
    with tensorly.backend_context("pytorch"):
        nearest_kron_sum(matrix_of(rows, columns), rows, columns, 2)
        assert tensorly.get_backend() == "pytorch"
    assert np.array_equal(np.random.get_state()[1], state)


@pytest.mark.parametrize("count", SHAPES)
def test_terms_come_largest_first(count):
    rows, columns = SHAPES[count]
    first, *_ = nearest_kron_sum(matrix_of(rows, columns), rows, columns, 5)
    sizes = first.flatten(1).norm(dim=1)
    assert torch.equal(sizes, sizes.sort(descending=True).values)


@pytest.mark.parametrize("count", SHAPES)
def test_the_largest_entry_of_each_frame_term_is_positive(count):
    rows, columns = SHAPES[count]
    _, *frame = nearest_kron_sum(matrix_of(rows, columns), rows, columns, 5)
    for factor in frame:
        terms = factor.flatten(1)
        assert (terms.gather(1, terms.abs().argmax(dim=1, keepdim=True)) > 0).all()


@pytest.mark.parametrize(("count", "limit"), [(2, 8), (3, 24)])
@pytest.mark.parametrize("over", [False, True])
def test_a_number_of_terms_out_of_bounds_is_refused_with_the_bounds(count, limit, over):
    rows, columns = SHAPES[count]
    rank = limit + 1 if over else 0
    with pytest.raises(ValueError, match=rf"separation_rank must be in \[1, {limit}\] for these shapes, got {rank}"):
        nearest_kron_sum(matrix_of(rows, columns), rows, columns, rank)


# The same sum in other factors


def with_as_many_terms_as_can_be_orthogonal(factors):
    if len(factors) > 2:
        return factors
    limit = min(factor[0].numel() for factor in factors)
    return [factor[:limit] for factor in factors]


@given(factor_lists())
def test_reconditioned_factors_have_the_same_sum(factors):
    factors = with_as_many_terms_as_can_be_orthogonal(factors)
    assert_close(kron_sum(*recondition(*factors)), kron_sum(*factors))


@given(factor_lists(most=2))
def test_two_reconditioned_factors_are_perfectly_conditioned(factors):
    factors = with_as_many_terms_as_can_be_orthogonal(factors)
    first, second = recondition(*factors)
    terms = len(first)
    assert condition_number(first, second) == pytest.approx(1)
    assert_close(second.flatten(1) @ second.flatten(1).T, torch.eye(terms, dtype=torch.float64))


@pytest.mark.parametrize("digits", [2, 4, 6])
def test_terms_that_cancel_are_reconditioned_to_one(digits):
    left, right = normal(2, 2, 3, seed=1), normal(2, 3, 2, seed=2)
    left[1] = -left[0] * (1 + 10.0**-digits)
    right[1] = right[0]
    assert condition_number(*recondition(left, right)) == pytest.approx(1)


@pytest.mark.parametrize("seed", range(5))
def test_two_reconditioned_factors_are_those_of_the_nearest_sum(seed):
    factors = [normal(3, 2, 4, seed=seed), normal(3, 3, 5, seed=seed + 1)]
    for one, two in zip(recondition(*factors), nearest_kron_sum(kron_sum(*factors), *SHAPES[2], 3), strict=True):
        assert_close(one, two)


@given(factor_lists(least=3))
def test_more_reconditioned_factors_have_unit_terms_with_canonical_signs_largest_first(factors):
    first, *frame = recondition(*factors)
    sizes = first.flatten(1).norm(dim=1)
    assert torch.equal(sizes, sizes.sort(descending=True).values)
    for factor in frame:
        terms = factor.flatten(1)
        assert_close(terms.norm(dim=1), torch.ones(len(terms), dtype=torch.float64))
        assert (terms.gather(1, terms.abs().argmax(dim=1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("zero", [0, 1])
def test_a_reconditioned_term_of_weight_zero_keeps_a_unit_frame(count, zero):
    factors = [normal(2, 2, 3, seed=seed) for seed in range(count)]
    factors[zero][0] = 0
    first, *frame = recondition(*factors)
    assert first[1].norm() < 1e-12
    for factor in frame:
        assert_close(factor.flatten(1).norm(dim=1), torch.ones(2, dtype=torch.float64))
    assert_close(kron_sum(first, *frame), kron_sum(*factors))


def test_reconditioning_does_not_form_the_matrix():
    first, second = recondition(normal(2, 1000, 500), normal(2, 500, 1000, seed=1))  # of a matrix of 2 TB
    assert first.shape == (2, 1000, 500)
    assert second.flatten(1).norm(dim=1).tolist() == pytest.approx([1, 1])


def test_more_terms_than_can_be_orthogonal_are_refused_with_the_number():
    with pytest.raises(ValueError, match=r"^at most 4 terms of these factors can be orthogonal, got 5$"):
        recondition(normal(5, 2, 2), normal(5, 3, 3))


@given(factor_lists())
def test_balanced_factors_have_the_same_sum_and_one_length_per_term(factors):
    balanced = balance(*factors)
    assert_close(kron_sum(*balanced), kron_sum(*factors))
    lengths = torch.stack([factor.flatten(1).norm(dim=1) for factor in balanced])
    assert_close(lengths, lengths[:1].expand_as(lengths))


@pytest.mark.parametrize("count", [2, 3])
def test_balancing_leaves_a_term_of_weight_zero_its_frame(count):
    factors = [normal(2, 2, 3, seed=seed) for seed in range(count)]
    factors[0][1] = 0
    for one, two in zip(balance(*factors), factors, strict=True):
        assert torch.equal(one[1], two[1])
        assert not torch.equal(one[0], two[0])


# Conditioning and padding


@given(pair_shapes(), SEEDS)
def test_orthogonal_terms_are_perfectly_conditioned(shapes, seed):
    rows, columns, limit = shapes
    factors = nearest_kron_sum(matrix_of(rows, columns, seed=seed), rows, columns, limit)
    assert condition_number(*factors) == pytest.approx(1)


@pytest.mark.parametrize("digits", [2, 4, 6])
def test_the_condition_number_counts_the_digits_that_cancel(digits):
    left, right = normal(2, 2, 3, seed=1), normal(2, 3, 2, seed=2)
    left[1] = -left[0] * (1 + 10.0**-digits)
    right[1] = right[0]
    assert np.log10(condition_number(left, right)) == pytest.approx(digits, abs=0.2)


def test_a_zero_sum_has_the_condition_number_one():
    assert condition_number(torch.zeros(2, 2, 3), normal(2, 3, 2).float()) == 1.0


def test_padding_appends_zero_columns():
    matrix = normal(2, 3)
    assert torch.equal(pad_columns(matrix, 5), torch.cat([matrix, torch.zeros(2, 2, dtype=torch.float64)], dim=1))
