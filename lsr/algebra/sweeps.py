"""The sweeps of alternating least squares: each Kronecker factor is updated in turn while the others are fixed.

The target has norm 1. It is a dense matrix, (M, N), or a pair, (M, k) and (k, N), whose product is never formed.
"""

from collections.abc import Callable
from functools import reduce
from math import inf
from typing import TypeVar

import torch
from torch import Tensor

from lsr.algebra.backend import svd
from lsr.algebra.separable import kron_sum, rearrange, recondition
from lsr.algebra.spectrum import Matrix

Factors = list[Tensor]
State = TypeVar("State")

RIDGE = 1e-10  # relative to the mean diagonal of a least-squares system, which is singular if terms vanish
# Over-relaxation: go 1.7 times the way to the least-squares solution. The loss is quadratic in each factor, so no step
# below 2 increases it. On MiniLM's weights, 20 sweeps with 1.7 capture as much as 60 with 1.
OVER_RELAXATION = 1.7
TINY = torch.finfo(torch.float64).tiny  # keeps a division by zero finite


def product_sweeps(
    target: Matrix,  # of norm 1
    a: Factors,
    b: Factors,
    sweeps: int,
    tolerance: float,
) -> tuple[Factors, Factors, float]:
    """Return the factors after at most `sweeps` sweeps, and the `change` of the last: the loop of `fit_product`.

    One factor per side needs no sweep: the initial truncated SVD is already optimal.
    """
    if len(a) == 1:
        return a, b, 0.0

    def sweep(sides: tuple[Factors, Factors]) -> tuple[tuple[Factors, Factors], float]:
        a, b = in_balanced_basis(*sides)
        full = kron_sum(*b)
        a = _step(a, full.T @ full, _times(full.T, target))
        full = kron_sum(*a)
        gram, product = full @ full.T, _times(full, _transposed(target))
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
    """Return the factors after at most `sweeps` sweeps, and the `change` of the last: the loop of `fit_row_space`.

    One factor needs no sweep: the initial leading singular vectors already span the best row space.
    """
    if len(a) == 1:
        return a, 0.0

    def sweep(a: Factors) -> tuple[Factors, float]:
        a = in_orthonormal_basis(a)
        full = kron_sum(*a)
        coefficients = _best_coefficients(target, full)
        gram, product = coefficients.T @ coefficients, _times(coefficients.T, target)
        return _step(a, gram, product), float((product * full).sum())

    return _alternate(sweep, a, sweeps, tolerance)


def _best_coefficients(
    target: Matrix,  # (k, N)
    full: Tensor,  # (r, N)
) -> Tensor:  # (k, r)
    """Return C that minimizes `||T - C A||_F`, which is T A^T (A A^T)^-1."""
    return _solve(full @ full.T, _times(full, _transposed(target))).T


def _alternate(
    sweep: Callable[[State], tuple[State, float]],  # returns the next state and the captured fraction of the energy
    state: State,
    sweeps: int,
    tolerance: float,
) -> tuple[State, float]:
    captured, gain = -inf, inf
    for _ in range(sweeps):
        before = captured
        state, captured = sweep(state)
        gain = captured - before
        # Also relative to the remainder: an exact fit takes many more sweeps after nearly everything is captured.
        if gain <= tolerance * max(0.0, min(captured, 1 - captured)):
            break
    return state, gain / captured if captured > 0 else inf


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

    For factor i, let Y_k be the Kronecker product of the k-th terms of all the other factors. Split the rows of A into
    (p, q) and its columns into (i, j), the first index for factor i and the second for the others. The normal equations
    are

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
