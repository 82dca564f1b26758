"""Kronecker factors of both sides of a product, fitted to a matrix by alternating least squares.

Decomposing A and B of a truncated SVD separately is not optimal: the basis between them is free, and the best basis is
the one in which both are most nearly separable. The fit optimizes over it: each factor is updated in turn while the
others are fixed.

The target is a dense matrix, (M, N), or a pair, (M, k) and (k, N), that stands for its product, which is never formed.
It is normalized to norm 1, so that the captured part of ||W||^2 is a fraction.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, isfinite, prod

import torch
from torch import Tensor

from lsr.algebra import spectrum
from lsr.algebra.backend import svd
from lsr.algebra.separable import Shape, balance, kron_sum, nearest_kron_sum, rearrange, recondition
from lsr.algebra.shapes import max_separation_rank
from lsr.algebra.spectrum import Matrix, leading_svd, norm_of, norm_of_pair, shape_of

Factors = list[Tensor]

RIDGE = 1e-10  # relative to the mean diagonal of a least-squares system, which is singular if terms vanish
TINY = torch.finfo(torch.float64).tiny  # keeps a division by zero finite
# Over-relaxation: go 1.7 times the way to the least-squares solution. The loss is quadratic in each factor, so no step
# below 2 increases it. On MiniLM's weights, 20 sweeps with 1.7 capture as much as 60 with 1.
OVER_RELAXATION = 1.7
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


@one_thread()
def fit_product(
    matrix: Matrix,  # (M, N), or (M, k) and (k, N)
    out_shape: Shape,  # (m_1, m_2), of product M
    rank_shape: Shape,  # (r_1, r_2)
    in_shape: Shape,  # (n_1, n_2), of product N
    separation_rank: int,
    *,
    seed: int = 0,
    sweeps: int = 200,
    tolerance: float = 5e-4,
) -> ProductFit:
    """Minimize `||W - kron_sum(*b) @ kron_sum(*a)||_F` over the factors of both sides: a local optimum.

    Starts from the nearest Kronecker sums of sqrt(S) V^T and U sqrt(S), the sides of the truncated SVD with canonical
    signs, which TensorLy decomposes. Stops after a sweep whose gain is below `tolerance` times the captured energy, or
    times the remaining energy if that is smaller. No sweep makes the fit worse, up to rounding.

    Raises:
        ValueError: if the matrix is zero, not finite or of the wrong shape, the rank exceeds one of its sides, or
            separation_rank is out of bounds.
    """
    limit = min(max_separation_rank(rank_shape, shape) for shape in (in_shape, out_shape))
    if not 1 <= separation_rank <= limit:
        raise ValueError(f"separation_rank must be in [1, {limit}] for these shapes, got {separation_rank}")
    target, norm = normalized(matrix, prod(out_shape), prod(in_shape))
    left, values, right = leading_svd(target, prod(rank_shape), seed)
    roots = values.sqrt()
    a = nearest_kron_sum(roots[:, None] * right, rank_shape, in_shape, separation_rank)
    b = nearest_kron_sum(left * roots, out_shape, rank_shape, separation_rank)
    a, b, change = improved(target, a, b, sweeps, tolerance)
    if change > STALLED:
        warnings.warn(
            f"the fit did not converge in {sweeps} sweeps: the last one changed the captured energy by {change:.1e}",
            stacklevel=3,  # the caller of the decorated fit
        )
    a, b = _equally_long(*in_balanced_basis(a, b), norm)
    a, b = (balance(*recondition(*side)) for side in (a, b))
    return ProductFit(a, b, _distance(matrix, kron_sum(*b), kron_sum(*a)) / norm, change)


def improved(
    target: Matrix,  # of norm 1
    a: Factors,
    b: Factors,
    sweeps: int,
    tolerance: float,
) -> tuple[Factors, Factors, float]:
    """Return the factors after at most `sweeps` sweeps, and the relative gain of the last.

    One factor per side needs no sweep: the truncated SVD is already optimal.
    """
    if len(a) == 1:
        return a, b, 0.0
    captured, gain = -inf, inf
    for _ in range(sweeps):
        before = captured
        a, b, captured = _sweep(target, a, b)
        gain = captured - before
        # Also relative to the remainder: an exact fit takes many more sweeps after nearly everything is captured.
        if gain <= tolerance * max(0.0, min(captured, 1 - captured)):
            break
    return a, b, gain / captured if captured > 0 else inf


def _sweep(target: Matrix, a: Factors, b: Factors) -> tuple[Factors, Factors, float]:
    """Return factors after one step on each side, and the fraction of the energy that they capture."""
    a, b = in_balanced_basis(a, b)
    full = kron_sum(*b)
    a = _step(a, full.T @ full, _times(full.T, target))
    full = kron_sum(*a)
    gram, product = full @ full.T, _times(full, _transposed(target))
    b = _transposed_factors(_step(_transposed_factors(b), gram, product))
    full = kron_sum(*b)
    return a, b, float(2 * (product * full.T).sum() - (gram * (full.T @ full)).sum())


def normalized(
    matrix: Matrix,
    rows: int,
    columns: int,
) -> tuple[Matrix, float]:
    """Return the matrix divided by its Frobenius norm, in float64 (float32 if it is large), and the norm.

    Raises:
        ValueError: if the matrix is zero, not finite or not rows x columns.
    """
    if shape_of(matrix) != (rows, columns):
        raise ValueError(f"expected a matrix {rows} x {columns}, got {shape_of(matrix)}")
    norm = norm_of(matrix)
    if not isfinite(norm):
        raise ValueError(f"expected a finite matrix to fit, got one of norm {norm}")
    if norm == 0:
        raise ValueError("nothing to fit: the matrix is zero")
    if isinstance(matrix, Tensor):
        return matrix.detach().to(torch.float32 if matrix.numel() > spectrum.LARGE else torch.float64) / norm, norm
    left, right = (part.detach().double() for part in matrix)
    return (left / norm, right), norm


def in_balanced_basis(a: Factors, b: Factors) -> tuple[Factors, Factors]:
    """Return factors `G_i A_i` and `B_i G_i^-1` of the same product B A, with A A^T and B^T B balanced.

    The basis of the inner rank is free, up to one G_i per factor. It drifts from step to step, with over-relaxation far
    enough to lose digits. With the partial traces L_A L_A^T of A A^T and L_B L_B^T of B^T B, and with
    L_B^T L_A = U S V^T, G_i = S^-1/2 U^T L_B^T makes both traces S.
    """
    a, b = list(a), list(b)
    grams_a, grams_b = _partial_grams(a), _partial_grams(_transposed_factors(b))
    # Each G_i contains the full ratio of the norms of A and B, which must be applied once, not D times.
    share = (grams_a[0].trace() / grams_b[0].trace()) ** ((1 - 1 / len(a)) / 4)
    for position, (gram_a, gram_b) in enumerate(zip(grams_a, grams_b, strict=True)):
        lower_a, lower_b = torch.linalg.cholesky(gram_a), torch.linalg.cholesky(gram_b)
        u, values, _ = svd(lower_b.T @ lower_a)
        change = share * (lower_b @ u / values.sqrt()).T
        a[position] = change @ a[position]
        b[position] = torch.linalg.solve(change, b[position], left=False)
    return a, b


def in_orthonormal_basis(a: Factors) -> Factors:
    """Return factors `G_i A_i` with the same row space, such that the partial traces of A A^T are multiples of I."""
    grams = _partial_grams(a)
    lowers = [torch.linalg.cholesky(gram / gram.diagonal().mean()) for gram in grams]
    return [torch.linalg.solve_triangular(lower, f, upper=False) for lower, f in zip(lowers, a, strict=True)]


def _partial_grams(factors: Factors) -> list[Tensor]:  # of A: D of (r_i, r_i), positive definite
    """Return the partial traces of A A^T, each over all factors but one."""
    full = kron_sum(*factors).unflatten(0, [factor.shape[1] for factor in factors])
    unfolded = [full.movedim(position, 0).flatten(1) for position in range(len(factors))]
    return [_with_ridge(rows @ rows.T) for rows in unfolded]


def _step(
    factors: Factors,  # of A: (s, r_i, n_i) each
    gram: Tensor,  # B^T B, (r, r)
    product: Tensor,  # B^T W, (r, N)
) -> Factors:
    """Update the factors of A for a fixed B: one over-relaxed least-squares step each, min ||W - B A||_F.

    Split the rows of A into (p, q) and its columns into (i, j), the first index for the factor F that is updated and
    the second for the other, Y. The normal equations are

        sum_{l,t} G[(k,p),(l,t)] F[l,t,i] = Q[(k,p),i]
        G[(k,p),(l,t)] = sum_{q,w} (B^T B)[(p,q),(t,w)] (Y_k Y_l^T)[q,w]
        Q[(k,p),i] = sum_{q,j} (B^T W)[(p,q),(i,j)] Y_k[q,j]
    """
    factors = list(factors)
    rank_shape = [factor.shape[1] for factor in factors]
    target = rearrange(product, tuple(rank_shape), tuple(factor.shape[2] for factor in factors))
    for position, factor in enumerate(factors):
        s, r, n = factor.shape
        other = factors[1 - position]
        system = _system(gram, rank_shape, position, other)
        aim = (target.T if position else target) @ other.flatten(1).T  # (r_i * n_i, s)
        aim = aim.view(r, n, s).permute(2, 0, 1).reshape(s * r, n)
        step = torch.linalg.solve(_with_ridge(system), aim - system @ factor.reshape(s * r, n))
        factors[position] = factor + OVER_RELAXATION * step.view(s, r, n)
    return recondition(*factors)


def _system(
    gram: Tensor,  # (r, r)
    rank_shape: list[int],
    position: int,
    other: Tensor,  # the factor that is not at that position
) -> Tensor:  # (s * r_i, s * r_i)
    s, r = len(other), rank_shape[position]
    paired = gram.view(*rank_shape, *rank_shape)
    paired = (paired.permute(1, 0, 3, 2) if position else paired).transpose(1, 2).flatten(2).flatten(0, 1)  # (pt, qw)
    rows = other.flatten(0, 1)
    grams = (rows @ rows.T).view(s, -1, s, other.shape[1]).transpose(1, 2).flatten(2).flatten(0, 1)  # (kl, qw)
    return (paired @ grams.T).view(r, r, s, s).permute(2, 0, 3, 1).reshape(s * r, s * r)


def _with_ridge(system: Tensor) -> Tensor:
    ridge = RIDGE * system.diagonal().mean() + TINY  # the least, so that a zero system has the solution zero
    return system + ridge * torch.eye(len(system), dtype=system.dtype)


def _equally_long(a: Factors, b: Factors, scale: float) -> tuple[Factors, Factors]:
    """Scale the first factors so that A and B have equal norms and B A is multiplied by `scale`, unless it is zero."""
    length_a, length_b = (torch.linalg.matrix_norm(kron_sum(*side)) for side in (a, b))
    if not length_a * length_b > 0:
        return a, b
    mean = (scale * length_a * length_b).sqrt()
    return [mean / length_a * a[0], *a[1:]], [mean / length_b * b[0], *b[1:]]


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


def _transposed_factors(factors: Factors) -> Factors:
    return [factor.transpose(1, 2) for factor in factors]


def _times(
    left: Tensor,  # (p, M)
    matrix: Matrix,  # (M, N)
) -> Tensor:  # (p, N), float64
    """Return `left @ matrix`, computed in the precision of the matrix."""
    if isinstance(matrix, Tensor):
        return (left.to(matrix.dtype) @ matrix).double()
    return left @ matrix[0] @ matrix[1]


def _transposed(matrix: Matrix) -> Matrix:
    """Return the transpose without a copy."""
    return matrix.T if isinstance(matrix, Tensor) else (matrix[1].T, matrix[0].T)
