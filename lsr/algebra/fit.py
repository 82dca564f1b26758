"""Kronecker factors fitted to a matrix by alternating least squares: in turn, all factors but one are fixed.

Decomposing A and B of a truncated SVD one by one is not optimal: the basis between them is free, and the best one is
that in which both are nearly separable. These fits find one, for any number of Kronecker factors.

A matrix to fit is dense, (M, N), or a pair, (M, k) and (k, N), whose product it is and which is never multiplied out.
It is fitted at the norm 1, where what is captured of ||W||^2 is a fraction.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from math import inf, isfinite, prod
from typing import TypeVar

import torch
from torch import Tensor

from lsr.algebra import spectrum
from lsr.algebra.separable import Shape, balance, kron_sum, nearest_kron_sum, rearrange, recondition
from lsr.algebra.shapes import max_separation_rank
from lsr.algebra.spectrum import Matrix, leading_svd

Factors = list[Tensor]
State = TypeVar("State")

RIDGE = 1e-10  # of the mean diagonal of a least-squares system, which is singular where terms vanish
# Each step goes so much further than to its least-squares solution. Below 2 no step can lose, for the loss is quadratic
# in each factor. On MiniLM's weights, 20 sweeps with 1.7 capture what 60 capture with 1.
OVER_RELAXATION = 1.7
BLOCK = 1024  # rows that are compared at once, so that no second copy of a large matrix is made
TINY = torch.finfo(torch.float64).tiny  # keeps a division by zero finite
STALLED = 1e-3  # relative change in the last sweep above which a fit has not converged


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: the products of a sweep are small, and two threads take twice as long as one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class ProductFit:
    """Factors with B A near a matrix, balanced: ||A||_F = ||B||_F, and all factors of a term have one length."""

    a: Factors  # (s, r_i, n_i) each
    b: Factors  # (s, m_i, r_i) each
    error: float  # ||W - B A||_F / ||W||_F: a ratio, 0 is exact
    change: float  # relative gain in captured energy, 1 - error^2, in the last sweep


@dataclass(frozen=True)
class RowSpaceFit:
    """Factors whose row space is near that of a matrix, in the convention of `recondition`, with ||A||_F^2 = r."""

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
    """Minimise `||W - kron_sum(*b) @ kron_sum(*a)||_F` over the factors of both sides: a local optimum.

    Starts from the nearest Kronecker sums of sqrt(S) V^T and U sqrt(S), the sides of the truncated SVD with canonical
    signs, and stops after a sweep that gains less than `tolerance` of what is captured, or of what is left if that is
    less. No sweep loses, up to rounding. With more than two factors a best fit need not exist: terms may cancel, see
    `condition_number`.

    Raises:
        ValueError: if the matrix is zero, not finite or of another shape, if the rank exceeds a side of it, if
            separation_rank is out of bounds, or if the factors to start from have other shapes.
    """
    _check_terms(separation_rank, rank_shape, in_shape, out_shape)
    target, norm = normalised(matrix, prod(out_shape), prod(in_shape))
    if start is None:
        a, b = product_start(target, out_shape, rank_shape, in_shape, separation_rank, seed)
    else:
        _check_start(start[0], separation_rank, rank_shape, in_shape)
        _check_start(start[1], separation_rank, out_shape, rank_shape)
        a, b = _equally_long(*start, 1 / norm)
    a, b, change = product_sweeps(target, a, b, sweeps, tolerance)
    _warn_if_stalled(change, sweeps)
    a, b = _equally_long(*_in_balanced_basis(a, b), norm)
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
    """Minimise `||T - C kron_sum(*a)||_F` over the factors and any C (k x r): only the row space of A matters.

    Starts from the nearest Kronecker sum of T itself where k = r, or else of its leading right singular vectors with
    canonical signs; stops as `fit_product` does.

    Raises:
        ValueError: if the rows are zero, not finite, too few or of another length, if separation_rank is out of bounds,
            or if the factors to start from have other shapes.
    """
    rank = prod(rank_shape)
    _check_terms(separation_rank, rank_shape, in_shape)
    if len(rows) < rank:
        raise ValueError(f"a row space of rank {rank} needs as many rows or more to fit, got {len(rows)}")
    target, norm = normalised(rows, len(rows), prod(in_shape))
    if start is None:
        start = row_space_start(target, rank_shape, in_shape, separation_rank, seed)
    _check_start(start, separation_rank, rank_shape, in_shape)
    a, change = row_space_sweeps(target, start, sweeps, tolerance)
    _warn_if_stalled(change, sweeps)
    first, *frame = recondition(*_in_orthonormal_basis(a))
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
    """Return where `fit_product` starts: the nearest Kronecker sums of both sides of the truncated SVD."""
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
    """Return where `fit_row_space` starts: at the nearest Kronecker sum of leading rows.

    As many rows as the rank are their own: if they are orthonormal, no SVD can tell which of them lead.
    """
    rank = prod(rank_shape)
    if isinstance(target, Tensor) and len(target) == rank:
        return nearest_kron_sum(target.double(), rank_shape, in_shape, separation_rank, seed)
    return nearest_kron_sum(leading_svd(target, rank, seed)[2], rank_shape, in_shape, separation_rank, seed)


def product_sweeps(
    target: Matrix,  # of norm 1
    a: Factors,
    b: Factors,
    sweeps: int,
    tolerance: float,
) -> tuple[Factors, Factors, float]:
    """Return the factors after at most so many sweeps of `fit_product`, and its `change`: the loop alone."""

    def sweep(sides: tuple[Factors, Factors]) -> tuple[tuple[Factors, Factors], float]:
        a, b = _in_balanced_basis(*sides)
        full = kron_sum(*b)
        a = _step(a, full.T @ full, times(full.T, target))
        full = kron_sum(*a)
        gram, product = full @ full.T, times(full, transposed(target))
        b = _transposed_factors(_step(_transposed_factors(b), gram, product))
        full = kron_sum(*b)
        captured = 2 * (product * full.T).sum() - (gram * (full.T @ full)).sum()
        return (a, b), float(captured)

    (a, b), change = _alternate(sweep, (a, b), sweeps, tolerance)
    return a, b, change


def row_space_sweeps(
    target: Matrix,  # (k, N), of norm 1
    a: Factors,
    sweeps: int,
    tolerance: float,
) -> tuple[Factors, float]:
    """Return the factors after at most so many sweeps of `fit_row_space`, and its `change`: the loop alone."""

    def sweep(a: Factors) -> tuple[Factors, float]:
        a = _in_orthonormal_basis(a)
        full = kron_sum(*a)
        coefficients = best_coefficients(target, full)
        gram, product = coefficients.T @ coefficients, times(coefficients.T, target)
        return _step(a, gram, product), float((product * full).sum())

    return _alternate(sweep, a, sweeps, tolerance)


def best_coefficients(
    target: Matrix,  # (k, N)
    full: Tensor,  # (r, N)
) -> Tensor:  # (k, r)
    """Return C that minimises `||T - C A||_F`, which is T A^T (A A^T)^-1."""
    return _solve(full @ full.T, times(full, transposed(target))).T


def _alternate(
    sweep: Callable[[State], tuple[State, float]],  # the next state and the energy captured, a fraction
    state: State,
    sweeps: int,
    tolerance: float,
) -> tuple[State, float]:
    captured, gain = -inf, inf
    for _ in range(sweeps):
        before = captured
        state, captured = sweep(state)
        gain = captured - before
        # Relative to the rest too: an exact fit takes many more sweeps after nearly all is captured.
        if gain <= tolerance * max(0.0, min(captured, 1 - captured)):
            break
    return state, gain / captured if captured > 0 else inf


def _in_balanced_basis(a: Factors, b: Factors) -> tuple[Factors, Factors]:
    """Return factors `G_i A_i` and `B_i G_i^-1` of the same product B A, such that A A^T and B^T B are alike.

    The basis of the inner rank is free, up to one G_i per factor. Steps let it drift, and over-relaxed ones far enough
    to lose digits. With the partial traces L_A L_A^T of A A^T, L_B L_B^T of B^T B, and L_B^T L_A = U S V^T,
    G_i = S^-1/2 U^T L_B^T makes both traces S.
    """
    a, b = list(a), list(b)
    grams_a, grams_b = _partial_grams(a), _partial_grams(_transposed_factors(b))
    # Each G_i holds the whole ratio of the norms of A and B, which must count once and not D times.
    share = (grams_a[0].trace() / grams_b[0].trace()) ** ((1 - 1 / len(a)) / 4)
    for position, (gram_a, gram_b) in enumerate(zip(grams_a, grams_b, strict=True)):
        lower_a, lower_b = torch.linalg.cholesky(gram_a), torch.linalg.cholesky(gram_b)
        u, values, _ = torch.linalg.svd(lower_b.T @ lower_a)
        change = share * (lower_b @ u / values.sqrt()).T
        a[position] = change @ a[position]
        b[position] = torch.linalg.solve(change, b[position], left=False)
    return a, b


def _in_orthonormal_basis(a: Factors) -> Factors:
    """Return factors `G_i A_i` of the same row space, such that the partial traces of A A^T are multiples of 1."""
    grams = _partial_grams(a)
    lowers = [torch.linalg.cholesky(gram / gram.diagonal().mean()) for gram in grams]
    return [torch.linalg.solve_triangular(lower, f, upper=False) for lower, f in zip(lowers, a, strict=True)]


def _partial_grams(factors: Factors) -> list[Tensor]:  # of A: D of (r_i, r_i), positive definite
    """Return the traces of A A^T over all factors but one."""
    full = kron_sum(*factors).unflatten(0, [factor.shape[1] for factor in factors])
    unfolded = [full.movedim(position, 0).flatten(1) for position in range(len(factors))]
    return [_with_ridge(rows @ rows.T) for rows in unfolded]


def _step(
    factors: Factors,  # of A: (s, r_i, n_i) each
    gram: Tensor,  # B^T B, (r, r)
    product: Tensor,  # B^T W, (r, N)
) -> Factors:
    """Return better factors of A for a fixed B: one over-relaxed least-squares step each, min ||W - B A||_F.

    For factor i, let Y_k be the Kronecker product of the k-th terms of all the others, and let (p, q) be the rows and
    (i, j) the columns of A, first of factor i and then of the others. The normal equations are

        sum_{l,t} G[(k,p),(l,t)] F_i[l,t,i] = Q[(k,p),i]
        G[(k,p),(l,t)] = sum_{q,w} (B^T B)[(p,q),(t,w)] (Y_k Y_l^T)[q,w]
        Q[(k,p),i] = sum_{q,j} (B^T W)[(p,q),(i,j)] Y_k[q,j]

    The Gram matrices Y_k Y_l^T are Kronecker products of those of the factors.
    """
    factors = list(factors)
    rank_shape = [factor.shape[1] for factor in factors]
    target = rearrange(product, tuple(rank_shape), tuple(factor.shape[2] for factor in factors))
    for position, factor in enumerate(factors):
        s, r, n = factor.shape
        others = factors[:position] + factors[position + 1 :]
        system = _system(gram, rank_shape, position, others)
        aim = target.movedim(position, 0).flatten(1) @ _outer_each(others).T  # (r_i * n_i, s)
        aim = aim.view(r, n, s).permute(2, 0, 1).reshape(s * r, n)
        step = _solve(system, aim - system @ factor.reshape(s * r, n))
        factors[position] = factor + OVER_RELAXATION * step.view(s, r, n)
    return recondition(*factors)


def _system(
    gram: Tensor,  # (r, r)
    rank_shape: list[int],
    position: int,
    others: Factors,  # without the factor at that position
) -> Tensor:  # (s * r_i, s * r_i)
    s, r, count = len(others[0]), rank_shape[position], len(rank_shape)
    order = [position, *(axis for axis in range(count) if axis != position)]
    paired = gram.view(*rank_shape, *rank_shape).permute(*order, *(count + axis for axis in order))
    paired = paired.reshape(r, -1, r, gram.shape[0] // r).transpose(1, 2).flatten(2).flatten(0, 1)  # (pt, qw)
    system = paired @ reduce(_kron_grams, map(_grams, others)).flatten(2).flatten(0, 1).T  # (pt, kl)
    return system.view(r, r, s, s).permute(2, 0, 3, 1).reshape(s * r, s * r)


def _grams(factor: Tensor) -> Tensor:  # (s, r, n) -> (s, s, r, r)
    s, r, n = factor.shape
    rows = factor.reshape(s * r, n)
    return (rows @ rows.T).view(s, r, s, r).transpose(1, 2)


def _kron_grams(left: Tensor, right: Tensor) -> Tensor:  # (s, s, p, p), (s, s, q, q) -> (s, s, pq, pq)
    return (left[:, :, :, None, :, None] * right[:, :, None, :, None, :]).flatten(4).flatten(2, 3)


def _outer_each(factors: Factors) -> Tensor:  # D of (s, r_i, n_i) -> (s, r_1 * n_1 * ... * r_D * n_D)
    terms = [factor.flatten(1) for factor in factors]
    return reduce(lambda left, right: (left[:, :, None] * right[:, None, :]).flatten(1), terms)


def _solve(system: Tensor, right: Tensor) -> Tensor:
    return torch.linalg.solve(_with_ridge(system), right)


def _with_ridge(system: Tensor) -> Tensor:
    ridge = RIDGE * system.diagonal().mean() + TINY  # the least, so that a zero system has the solution zero
    return system + ridge * torch.eye(len(system), dtype=system.dtype)


def _transposed_factors(factors: Factors) -> Factors:
    return [factor.transpose(1, 2) for factor in factors]


def _equally_long(a: Factors, b: Factors, scale: float) -> tuple[Factors, Factors]:
    """Scale the first factors such that A and B have one norm and B A is multiplied by `scale`; unless it is zero."""
    length_a, length_b = (torch.linalg.matrix_norm(kron_sum(*side)) for side in (a, b))
    if not length_a * length_b > 0:
        return a, b
    mean = (scale * length_a * length_b).sqrt()
    return [mean / length_a * a[0], *a[1:]], [mean / length_b * b[0], *b[1:]]


def normalised(
    matrix: Matrix,
    rows: int,
    columns: int,
) -> tuple[Matrix, float]:
    """Return the matrix divided by its Frobenius norm, in float64 (float32 if it is large), and that norm.

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
        norm = _norm_of_pair(left, right)
    if not isfinite(norm):
        raise ValueError(f"expected a finite matrix to fit, got one of norm {norm}")
    if norm == 0:
        raise ValueError("nothing to fit: the matrix is zero")
    if isinstance(matrix, Tensor):
        return parts[0].to(torch.float32 if matrix.numel() > spectrum.LARGE else torch.float64) / norm, norm
    return (left / norm, right), norm


def times(
    left: Tensor,  # (p, M)
    matrix: Matrix,  # (M, N)
) -> Tensor:  # (p, N), float64
    """Return `left @ matrix`, in the precision of the matrix."""
    if isinstance(matrix, Tensor):
        return (left.to(matrix.dtype) @ matrix).double()
    return left @ matrix[0] @ matrix[1]


def transposed(matrix: Matrix) -> Matrix:
    """Return the transpose without a copy."""
    return matrix.T if isinstance(matrix, Tensor) else (matrix[1].T, matrix[0].T)


def _norm_of_pair(left: Tensor, right: Tensor) -> float:
    """Return `||left @ right||_F` from the triangles of QR decompositions: nothing cancels, nothing large is formed."""
    return float(torch.linalg.matrix_norm(torch.linalg.qr(left, mode="r").R @ torch.linalg.qr(right.T, mode="r").R.T))


def _distance(
    matrix: Matrix,  # (M, N)
    left: Tensor,  # (M, r)
    right: Tensor,  # (r, N)
) -> float:
    """Return `||matrix - left @ right||_F` from the entries: ||W||^2 minus what is captured would cancel."""
    if not isinstance(matrix, Tensor):
        return _norm_of_pair(torch.cat([matrix[0], -left], dim=1), torch.cat([matrix[1], right]))
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
            f"the fit did not converge in {sweeps} sweeps: the last one still changed what it captures by {change:.1e}",
            stacklevel=4,  # the caller of a decorated fit
        )
