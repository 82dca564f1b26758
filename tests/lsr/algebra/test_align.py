from itertools import permutations
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lsr.algebra import align
from lsr.algebra.align import align_product, align_row_space
from lsr.algebra.fit import fit_product, fit_row_space
from lsr.algebra.separable import kron_sum, pad_columns

SEEDS = st.integers(0, 999)
OUT, RANK, IN = (4, 5), (2, 2), (6, 4)  # 20 rows, rank 4, 24 columns


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def shuffled(count, seed=0):
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def drawn(row_shape, column_shape, terms=1, seed=0):
    shapes = zip(row_shape, column_shape, strict=True)
    return [normal(terms, p, q, seed=seed + position) for position, (p, q) in enumerate(shapes)]


def structured(seed=0):
    """A and B of one term each."""
    return kron_sum(*drawn(RANK, IN, seed=seed)), kron_sum(*drawn(OUT, RANK, seed=seed + 10))


def placed(matrix, out_slots, in_slots, rows, columns):
    """Return the matrix with each row and column in its slot, zero elsewhere."""
    slots = torch.zeros(rows, columns, dtype=matrix.dtype)
    slots[out_slots[:, None], in_slots] = matrix
    return slots


def assert_slots(slots, count, width):
    assert slots.dtype is torch.int64
    assert slots.shape == (count,)
    assert len(set(slots.tolist())) == count
    assert 0 <= slots.min() <= slots.max() < width


# A planted order


@pytest.mark.parametrize("seed", range(4))
def test_a_shuffled_product_is_fitted_far_better_than_in_order(seed):
    a, b = structured(seed)
    matrix = (b @ a)[shuffled(20, seed)][:, shuffled(24, seed + 1)]
    _, _, aligned = align_product(matrix, OUT, RANK, IN, 1)
    assert aligned.error < 0.7 * fit_product(matrix, OUT, RANK, IN, 1).error


@pytest.mark.parametrize("seed", range(4))
def test_a_shuffled_row_space_is_fitted_far_better_than_in_order(seed):
    a, _ = structured(seed)
    rows = a[:, shuffled(24, seed)]
    _, aligned = align_row_space(rows, RANK, IN, 1)
    assert aligned.error < 0.7 * fit_row_space(rows, RANK, IN, 1).error


def test_what_already_fits_keeps_its_order():
    a, b = structured()
    out_slots, in_slots, found = align_product(b @ a, OUT, RANK, IN, 1)
    assert torch.equal(out_slots, torch.arange(20))
    assert torch.equal(in_slots, torch.arange(24))
    assert found.error < 1e-6


# Any matrix


@settings(max_examples=10)
@given(SEEDS, st.integers(15, 20), st.integers(20, 24), st.integers(1, 4))
def test_aligned_slots_are_distinct_and_the_fit_is_no_worse_than_in_order(seed, rows, columns, terms):
    matrix = normal(rows, columns, seed=seed)
    out_slots, in_slots, found = align_product(matrix, OUT, RANK, IN, terms)
    assert_slots(out_slots, rows, prod(OUT))
    assert_slots(in_slots, columns, prod(IN))
    in_order = placed(matrix, torch.arange(rows), torch.arange(columns), prod(OUT), prod(IN))
    assert found.error <= fit_product(in_order, OUT, RANK, IN, terms).error
    target = placed(matrix, out_slots, in_slots, prod(OUT), prod(IN))
    distance = torch.dist(target, kron_sum(*found.b) @ kron_sum(*found.a))
    assert found.error == pytest.approx(float(distance / matrix.norm()))


@settings(max_examples=10)
@given(SEEDS, st.integers(4, 7), st.integers(20, 24), st.integers(1, 4))
def test_an_aligned_row_space_has_distinct_slots_and_is_no_worse_than_in_order(seed, rows, columns, terms):
    matrix = normal(rows, columns, seed=seed)
    slots, found = align_row_space(matrix, RANK, IN, terms)
    assert_slots(slots, columns, prod(IN))
    assert found.error <= fit_row_space(pad_columns(matrix, prod(IN)), RANK, IN, terms).error
    target = placed(matrix, torch.arange(rows), slots, rows, prod(IN))
    basis = torch.linalg.qr(kron_sum(*found.a).T).Q
    assert found.error == pytest.approx(float(torch.dist(target, target @ basis @ basis.T) / matrix.norm()))


@given(SEEDS, st.integers(1, 4))
@settings(max_examples=20)
def test_no_other_slots_are_nearer_to_the_same_product(seed, columns):
    a, b, matrix = normal(2, 5, seed=seed), normal(3, 2, seed=seed + 1), normal(3, columns, seed=seed + 2)
    found = align._best_slots(a, b.T @ b, b.T @ matrix)
    distances = {slots: float(torch.dist(matrix, (b @ a)[:, slots])) for slots in permutations(range(5), columns)}
    assert distances[tuple(found.tolist())] == pytest.approx(min(distances.values()))


@given(SEEDS)
def test_better_slots_are_no_farther_from_the_product(seed):
    a, b, matrix = normal(2, 7, seed=seed), normal(6, 2, seed=seed + 1), normal(6, 7, seed=seed + 2)
    out_slots, in_slots = shuffled(6, seed), shuffled(7, seed)
    for _ in range(3):
        before = out_slots, in_slots
        out_slots, in_slots = align._better_slots(a, b, matrix, out_slots)
        order = [before, (before[0], in_slots), (out_slots, in_slots)]
        distances = [torch.dist(matrix, (b @ a)[rows][:, columns]) for rows, columns in order]
        assert distances[2] - 1e-12 <= distances[1] <= distances[0] + 1e-12


def test_slots_that_fit_worse_than_in_order_are_dropped(monkeypatch):
    a, b = structured()
    monkeypatch.setattr(align, "_best_slots", lambda full, gram, product: shuffled(product.shape[1]))
    out_slots, in_slots, _ = align_product(b @ a, OUT, RANK, IN, 1)
    slots, _ = align_row_space(a, RANK, IN, 1)
    assert torch.equal(out_slots, torch.arange(20))
    assert torch.equal(in_slots, torch.arange(24))
    assert torch.equal(slots, torch.arange(24))


def test_a_pair_is_aligned_as_its_product_is():
    a, b = structured()
    left, right = b[shuffled(20)][:18], a[:, shuffled(24)][:, :23]
    one, two = align_product((left, right), OUT, RANK, IN, 2), align_product(left @ right, OUT, RANK, IN, 2)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert one[2].error == pytest.approx(two[2].error, rel=1e-4)


def test_the_same_matrix_is_aligned_to_the_same_bytes():
    one, two = (align_product(normal(18, 23), OUT, RANK, IN, 2, seed=1) for _ in range(2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    for factor, again in zip([*one[2].a, *one[2].b], [*two[2].a, *two[2].b], strict=True):
        assert np.array_equal(factor.numpy(), again.numpy())


def test_a_trainable_weight_is_aligned_without_a_gradient():
    weight = torch.nn.Parameter(normal(18, 23).float())
    _, _, found = align_product(weight, OUT, RANK, IN, 2)
    _, rows = align_row_space(weight, RANK, IN, 2)
    assert not any(factor.requires_grad for factor in (*found.a, *found.b, *rows.a))


@pytest.mark.parametrize("shape", [(21, 24), (20, 25)])
def test_fewer_slots_than_rows_or_columns_are_refused_with_both_numbers(shape):
    count, width = (21, 20) if shape[0] > 20 else (25, 24)
    with pytest.raises(ValueError, match=f"^{count} rows or columns need as many slots, got {width} for the shape"):
        align_product(normal(*shape), OUT, RANK, IN, 2)
    if shape[1] > 24:
        with pytest.raises(ValueError, match=r"^25 rows or columns need as many slots, got 24"):
            align_row_space(normal(*shape), RANK, IN, 2)
