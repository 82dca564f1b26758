"""Kronecker factors fitted to a matrix by alternating least squares.

Decomposing A and B of a truncated SVD separately is not optimal: the basis between them is free, and the best basis is
the one in which both are most nearly separable. These fits optimize over it, for any number of Kronecker factors.

The target is a dense matrix, (M, N), or a pair, (M, k) and (k, N), that stands for its product, which is never formed.
It is normalized to norm 1, so that the captured part of ||W||^2 is a fraction.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite, prod

import torch
from torch import Tensor

from lsr.algebra import spectrum
from lsr.algebra.separable import Shape, balance, kron_sum, nearest_kron_sum, recondition
from lsr.algebra.shapes import max_separation_rank
from lsr.algebra.spectrum import Matrix, leading_svd, norm_of_pair
from lsr.algebra.sweeps import (
    TINY,
    Factors,
    in_balanced_basis,
    in_orthonormal_basis,
    product_sweeps,
    row_space_sweeps,
)

BLOCK = 1024  # rows compared at a time, to avoid a second copy of a large matrix
STALLED = 1e-3  # a fit has not converged if its last sweep changed it by more than this, relatively


@contextmanager
def one_thread() -> Iterator[None]:
    """Restrict torch to one thread: the products of a sweep are so small that two threads take twice as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class ProductFit:
    """Factors with B A near a matrix, balanced: ||A||_F = ||B||_F, and all factors of a term have the same norm."""

    a: Factors  # (s, r_i, n_i) each
    b: Factors  # (s, m_i, r_i) each
    error: float  # ||W - B A||_F / ||W||_F: a ratio, 0 is exact
    change: float  # relative gain in captured energy, 1 - error^2, in the last sweep


@dataclass(frozen=True)
class RowSpaceFit:
    """Factors whose row space approximates a matrix's, in the convention of `recondition`, with ||A||_F^2 = r."""

    a: Factors  # (s, r_i, n_i) each
    error: float  # ||T - T P||_F / ||T||_F with P the projection onto row(A): a ratio, 0 is exact
    change: float  # relative gain in captured energy, 1 - error^2, in the last sweep


@one_thread()
def fit_product(
    matrix: Matrix,  # (M, N), or (M, k) and (k, N)
    out_shape: Shape,  # (m_1, ..., m_D), of product M
    rank_shape: Shape,  # (r_1, ..., r_D)
    in_shape: Shape,  # (n_1, ..., n_D), of product N
    separation_rank: int,
    *,
    start: tuple[Factors, Factors] | None = None,  # factors of A and of B
    seed: int = 0,
    sweeps: int = 200,
    tolerance: float = 5e-4,
) -> ProductFit:
    """Minimize `||W - kron_sum(*b) @ kron_sum(*a)||_F` over the factors of both sides: a local optimum.

    Starts from the nearest Kronecker sums of sqrt(S) V^T and U sqrt(S), the sides of the truncated SVD with canonical
    signs. Stops after a sweep whose gain is below `tolerance` times the captured energy, or times the remaining energy
    if that is smaller. No sweep makes the fit worse, up to rounding. With more than two factors a best fit may not
    exist, since terms may cancel; see `condition_number`.

    Raises:
        ValueError: if the matrix is zero, not finite or of the wrong shape, the rank exceeds one of its sides,
            separation_rank is out of bounds, or the initial factors have the wrong shapes.
    """
    _check_terms(separation_rank, rank_shape, in_shape, out_shape)
    target, norm = normalized(matrix, prod(out_shape), prod(in_shape))
    if start is None or len(rank_shape) == 1:  # with one factor this is already the optimum
        a, b = product_start(target, out_shape, rank_shape, in_shape, separation_rank, seed)
    else:
        _check_start(start[0], separation_rank, rank_shape, in_shape)
        _check_start(start[1], separation_rank, out_shape, rank_shape)
        a, b = _equally_long(*start, 1 / norm)
    a, b, change = product_sweeps(target, a, b, sweeps, tolerance)
    _warn_if_stalled(change, sweeps)
    a, b = _equally_long(*in_balanced_basis(a, b), norm)
    a, b = (balance(*recondition(*side)) for side in (a, b))
    return ProductFit(a, b, _distance(matrix, kron_sum(*b), kron_sum(*a)) / norm, change)


@one_thread()
def fit_row_space(
    rows: Tensor,  # (k, N), k >= r
    rank_shape: Shape,  # (r_1, ..., r_D)
    in_shape: Shape,  # (n_1, ..., n_D), of product N
    separation_rank: int,
    *,
    start: Factors | None = None,
    seed: int = 0,
    sweeps: int = 150,
    tolerance: float = 5e-4,
) -> RowSpaceFit:
    """Minimize `||T - C kron_sum(*a)||_F` over the factors and any C (k x r): only the row space of A matters.

    Starts from the nearest Kronecker sum of T itself if k = r, otherwise of its leading right singular vectors with
    canonical signs. Stops as `fit_product` does.

    Raises:
        ValueError: if the rows are zero, not finite, too few or of the wrong length, separation_rank is out of bounds,
            or the initial factors have the wrong shapes.
    """
    rank = prod(rank_shape)
    _check_terms(separation_rank, rank_shape, in_shape)
    if len(rows) < rank:
        raise ValueError(f"fitting a row space of rank {rank} needs at least as many rows, got {len(rows)}")
    target, norm = normalized(rows, len(rows), prod(in_shape))
    if start is None or len(rank_shape) == 1:
        start = row_space_start(target, rank_shape, in_shape, separation_rank, seed)
    _check_start(start, separation_rank, rank_shape, in_shape)
    a, change = row_space_sweeps(target, start, sweeps, tolerance)
    _warn_if_stalled(change, sweeps)
    first, *frame = recondition(*in_orthonormal_basis(a))
    full = kron_sum(first, *frame)
    first = rank**0.5 / torch.linalg.matrix_norm(full).clamp_min(TINY) * first
    return RowSpaceFit([first, *frame], _distance_to_span(rows, torch.linalg.qr(full.T).Q) / norm, change)


def product_start(
    target: Matrix,  # (M, N)
    out_shape: Shape,
    rank_shape: Shape,
    in_shape: Shape,
    separation_rank: int,
    seed: int,
) -> tuple[Factors, Factors]:
    """Return the initial factors of `fit_product`: the nearest Kronecker sums of both sides of the truncated SVD."""
    left, values, right = leading_svd(target, prod(rank_shape), seed)
    roots = values.sqrt()
    a = nearest_kron_sum(roots[:, None] * right, rank_shape, in_shape, separation_rank, seed)
    return a, nearest_kron_sum(left * roots, out_shape, rank_shape, separation_rank, seed)


def row_space_start(
    target: Matrix,  # (k, N)
    rank_shape: Shape,
    in_shape: Shape,
    separation_rank: int,
    seed: int,
) -> Factors:
    """Return the initial factors of `fit_row_space`: the nearest Kronecker sum of the leading rows.

    If there are only `rank` rows, they are taken as they are: an SVD cannot order orthonormal rows.
    """
    rank = prod(rank_shape)
    if isinstance(target, Tensor) and len(target) == rank:
        return nearest_kron_sum(target.double(), rank_shape, in_shape, separation_rank, seed)
    return nearest_kron_sum(leading_svd(target, rank, seed)[2], rank_shape, in_shape, separation_rank, seed)


def _equally_long(a: Factors, b: Factors, scale: float) -> tuple[Factors, Factors]:
    """Scale the first factors so that A and B have equal norms and B A is multiplied by `scale`, unless it is zero."""
    length_a, length_b = (torch.linalg.matrix_norm(kron_sum(*side)) for side in (a, b))
    if not length_a * length_b > 0:
        return a, b
    mean = (scale * length_a * length_b).sqrt()
    return [mean / length_a * a[0], *a[1:]], [mean / length_b * b[0], *b[1:]]


def normalized(
    matrix: Matrix,
    rows: int,
    columns: int,
) -> tuple[Matrix, float]:
    """Return the matrix divided by its Frobenius norm, in float64 (float32 if it is large), and the norm.

    Raises:
        ValueError: if the matrix is zero, not finite or not rows x columns.
    """
    parts = [part.detach() for part in ((matrix,) if isinstance(matrix, Tensor) else matrix)]
    if (len(parts[0]), parts[-1].shape[1]) != (rows, columns):
        raise ValueError(
            f"expected a matrix {rows} x {columns}, got {' and '.join(str(tuple(p.shape)) for p in parts)}"
        )
    if isinstance(matrix, Tensor):
        norm = float(torch.linalg.vector_norm(parts[0], dtype=torch.float64))
    else:
        left, right = parts = [part.double() for part in parts]
        norm = norm_of_pair(left, right)
    if not isfinite(norm):
        raise ValueError(f"expected a finite matrix to fit, got one of norm {norm}")
    if norm == 0:
        raise ValueError("nothing to fit: the matrix is zero")
    if isinstance(matrix, Tensor):
        return parts[0].to(torch.float32 if matrix.numel() > spectrum.LARGE else torch.float64) / norm, norm
    return (left / norm, right), norm


def _distance(
    matrix: Matrix,  # (M, N)
    left: Tensor,  # (M, r)
    right: Tensor,  # (r, N)
) -> float:
    """Return `||matrix - left @ right||_F` from the entries: subtracting captured energy from ||W||^2 would cancel."""
    if not isinstance(matrix, Tensor):
        return norm_of_pair(torch.cat([matrix[0], -left], dim=1), torch.cat([matrix[1], right]))
    blocks = zip(matrix.detach().split(BLOCK), left.split(BLOCK), strict=True)
    return float(torch.stack([(rows.double() - part @ right).norm() for rows, part in blocks]).norm())


def _distance_to_span(
    rows: Tensor,  # (k, N)
    basis: Tensor,  # (N, r), orthonormal
) -> float:
    blocks = (block.double() for block in rows.detach().split(BLOCK))
    return float(torch.stack([(block - block @ basis @ basis.T).norm() for block in blocks]).norm())


def _check_terms(separation_rank: int, rank_shape: Shape, *width_shapes: Shape) -> None:
    limit = min(max_separation_rank(rank_shape, shape) for shape in width_shapes)
    if not 1 <= separation_rank <= limit:
        raise ValueError(f"separation_rank must be in [1, {limit}] for these shapes, got {separation_rank}")


def _check_start(factors: Factors, separation_rank: int, row_shape: Shape, column_shape: Shape) -> None:
    expected = [(separation_rank, p, q) for p, q in zip(row_shape, column_shape, strict=True)]
    given = [tuple(factor.shape) for factor in factors]
    if given != expected:
        raise ValueError(f"expected factors {expected} to start from, got {given}")


def _warn_if_stalled(change: float, sweeps: int) -> None:
    if change > STALLED:
        warnings.warn(
            f"the fit did not converge in {sweeps} sweeps: the last one changed the captured energy by {change:.1e}",
            stacklevel=4,  # the caller of the decorated fit
        )
