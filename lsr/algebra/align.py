"""Slots: which column of A and which row of B belongs to which input and output of a layer.

The units of a hidden layer have no natural order, but Kronecker factors depend on it. As A and B are materialised, any
order costs nothing per token: `A_full = A[:, in_slots]` and `B_full = B[out_slots]`, where `in_slots[j]` is the slot of
input j among the n_1 * ... * n_D columns of A. Slots that nobody takes are padding. It does cost an integer per unit.
"""

from math import prod

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lsr.algebra.fit import (
    ProductFit,
    RowSpaceFit,
    best_coefficients,
    fit_product,
    fit_row_space,
    normalised,
    product_start,
    product_sweeps,
    row_space_start,
    row_space_sweeps,
    times,
    transposed,
)
from lsr.algebra.separable import Shape, kron_sum
from lsr.algebra.spectrum import Matrix

# Of one sweep each: the less the factors have settled in one order, the better the next. 8 rounds of 40 sweeps capture
# less of MiniLM's weights (rank 16, s = 8: 1.40 times as much as in order, against 1.52).
ROUNDS = 8


def align_row_space(
    rows: Tensor,  # (k, n), k >= r
    rank_shape: Shape,  # (r_1, ..., r_D)
    in_shape: Shape,  # (n_1, ..., n_D), of product N >= n
    separation_rank: int,
    *,
    seed: int = 0,
) -> tuple[Tensor, RowSpaceFit]:  # slots (n,)
    """Fit the row space of a matrix and the slots of its columns: `min ||T - C A[:, slots]||_F`, empty slots zero.

    In rounds: a sweep of the fit, then the best slots for its factors, which is an assignment problem; until no slot
    changes. At last the full fit. If the columns in order fit better, they keep their order.

    Raises:
        ValueError: as `fit_row_space`, or if there are fewer slots than columns.
    """
    shapes, width = (rank_shape, in_shape, separation_rank), prod(in_shape)
    rows, slots = rows.detach().double(), _in_order(rows.shape[1], in_shape)
    ordered = slots, fit_row_space(_spread(rows, 1, slots, width), *shapes, seed=seed)
    a = row_space_start(_spread(rows, 1, slots, width), *shapes, seed)
    for _ in range(ROUNDS):
        a, _ = row_space_sweeps(_spread(rows, 1, slots, width), a, 1, 0.0)
        full = kron_sum(*a)
        coefficients = best_coefficients(rows, full[:, slots])
        before, slots = slots, _best_slots(full, coefficients.T @ coefficients, times(coefficients.T, rows))
        if torch.equal(slots, before):
            break
    aligned = slots, fit_row_space(_spread(rows, 1, slots, width), *shapes, start=a)
    return min(ordered, aligned, key=lambda found: found[1].error)


def align_product(
    matrix: Matrix,  # (m, n), or (m, k) and (k, n)
    out_shape: Shape,  # (m_1, ..., m_D), of product M >= m
    rank_shape: Shape,  # (r_1, ..., r_D)
    in_shape: Shape,  # (n_1, ..., n_D), of product N >= n
    separation_rank: int,
    *,
    seed: int = 0,
) -> tuple[Tensor, Tensor, ProductFit]:  # out_slots (m,), in_slots (n,)
    """Fit a matrix and the slots of its rows and columns: `min ||W - B[out_slots] A[:, in_slots]||_F`, the rest zero.

    In rounds as `align_row_space`, columns before rows. If both in order fit better, they keep their order.

    Raises:
        ValueError: as `fit_product`, or if there are fewer slots than rows or columns.
    """
    shapes = out_shape, rank_shape, in_shape, separation_rank
    shape = prod(out_shape), prod(in_shape)
    left, right = (matrix, matrix) if isinstance(matrix, Tensor) else matrix
    out_slots, in_slots = _in_order(len(left), out_shape), _in_order(right.shape[1], in_shape)
    ordered = out_slots, in_slots, fit_product(_placed(matrix, out_slots, in_slots, shape), *shapes, seed=seed)
    target, norm = normalised(matrix, len(left), right.shape[1])
    a, b = product_start(_placed(target, out_slots, in_slots, shape), *shapes, seed)
    for _ in range(ROUNDS):
        a, b, _ = product_sweeps(_placed(target, out_slots, in_slots, shape), a, b, 1, 0.0)
        before = out_slots, in_slots
        out_slots, in_slots = _better_slots(kron_sum(*a), kron_sum(*b), target, out_slots)
        if torch.equal(out_slots, before[0]) and torch.equal(in_slots, before[1]):
            break
    start = [norm * a[0], *a[1:]], b
    aligned = out_slots, in_slots, fit_product(_placed(matrix, out_slots, in_slots, shape), *shapes, start=start)
    return min(ordered, aligned, key=lambda found: found[2].error)


def _better_slots(
    full_a: Tensor,  # (r, N)
    full_b: Tensor,  # (M, r)
    target: Matrix,  # (m, n)
    out_slots: Tensor,  # (m,)
) -> tuple[Tensor, Tensor]:  # out_slots (m,), in_slots (n,)
    """Return the best slots of the columns for these slots of the rows, and the best of the rows for those."""
    in_slots = _best_slots(full_a, full_b.T @ full_b, times(full_b[out_slots].T, target))
    return _best_slots(full_b.T, full_a @ full_a.T, times(full_a[:, in_slots], transposed(target))), in_slots


def _best_slots(
    full: Tensor,  # A, (r, N)
    gram: Tensor,  # B^T B, (r, r)
    product: Tensor,  # B^T W, (r, n)
) -> Tensor:  # (n,), distinct
    """Return the slots that minimise `||W - (B A)[:, slots]||_F`: `||M_:j||^2 - 2 <M_:j, W_:c>` summed, M = B A."""
    costs = (full * (gram @ full)).sum(dim=0) - 2 * product.T @ full  # (n, N)
    return torch.from_numpy(linear_sum_assignment(costs.numpy())[1])


def _placed(
    matrix: Matrix,  # (m, n)
    out_slots: Tensor,
    in_slots: Tensor,
    shape: tuple[int, int],
) -> Matrix:  # of that shape, zero in empty slots
    if not isinstance(matrix, Tensor):
        return _spread(matrix[0], 0, out_slots, shape[0]), _spread(matrix[1], 1, in_slots, shape[1])
    return _spread(_spread(matrix, 0, out_slots, shape[0]), 1, in_slots, shape[1])


def _spread(matrix: Tensor, axis: int, slots: Tensor, count: int) -> Tensor:
    sizes = [count if axis == other else size for other, size in enumerate(matrix.shape)]
    return matrix.new_zeros(sizes).index_copy_(axis, slots, matrix.detach())


def _in_order(count: int, shape: Shape) -> Tensor:
    if count > prod(shape):
        raise ValueError(f"{count} rows or columns need as many slots, got {prod(shape)} for the shape {shape}")
    return torch.arange(count)
