"""Sums of Kronecker products: tensors to tensors.

Axis letters, used throughout the package: s terms (the separation rank), D Kronecker factors per side, and p_i rows and
q_i columns in factor i. For the adapter's A (r x n) these are r_i and n_i, for B (m x r) they are m_i and r_i.
Pairs of indices are row-major: row (u, v) of X ⊗ Y is u * p2 + v.
"""

from collections.abc import Sequence

import numpy as np
import torch
from tensorly.cp_tensor import CPTensor
from tensorly.decomposition import parafac
from tensorly.tenalg import svd_interface, unfolding_dot_khatri_rao
from torch import Tensor

from lsr.algebra.backend import converging_numpy, svd

Shape = tuple[int, ...]

PARAFAC_SWEEPS = 200
PARAFAC_TOLERANCE = 1e-8  # absolute change of the relative error, in float64
# Relative to a tensor of norm 1. parafac solves normal equations: without a penalty, two nearly equal terms make them
# singular, and large terms of opposite sign grow. On a row space of MiniLM (rank 8, D = 3, s = 32), 1e-3 gives a
# condition number of 1.5, 1e-6 gives 2.9 at the same error, and from 1e-2 on terms vanish.
PARAFAC_PENALTY = 1e-3
VANISHED = 1e-12  # norm of a factor's term, on the same scale


def kron_sum(
    *factors: Tensor,  # (s, p_i, q_i) each
) -> Tensor:  # (p_1 * ... * p_D, q_1 * ... * q_D)
    """Return `sum_k factors[0][k] ⊗ ... ⊗ factors[-1][k]` as one matrix.

    Multiplies the first factor with all the others over s, then permutes (the rearrangement identity): with two
    factors, nothing of size s * p * q is formed or kept for the backward pass. A single factor is the matrix itself.

    Raises:
        ValueError: if there are no factors or they differ in their number of terms.

    Reference: Van Loan & Pitsianis, "Approximation with Kronecker products", 1993.
    """
    if not factors or any(factor.shape[0] != factors[0].shape[0] for factor in factors[1:]):
        raise ValueError(f"expected factors with equally many terms, got {[tuple(f.shape) for f in factors]}")
    if len(factors) == 1:
        return factors[0][0] if len(factors[0]) == 1 else factors[0].sum(dim=0)
    left, right = factors[0], factors[1]
    for factor in factors[2:]:
        right = _kron_each(right, factor)
    (count, p1, q1), (_, p2, q2) = left.shape, right.shape
    blocks = left.reshape(count, -1).T @ right.reshape(count, -1)
    return blocks.view(p1, q1, p2, q2).transpose(1, 2).reshape(p1 * p2, q1 * q2)


def kron_sum_gradients(
    gradient: Tensor,  # of kron_sum(left, right): (<= p_1 * p_2, <= q_1 * q_2), missing entries are zero
    left: Tensor,  # (s, p_1, q_1)
    right: Tensor,  # (s, p_2, q_2)
) -> tuple[Tensor, Tensor]:  # the same shapes
    """Return the gradients of both factors: `right R^T` and `left R` with R the rearranged gradient.

    Reference: the rearrangement identity, see `kron_sum`.
    """
    (_, p1, q1), (_, p2, q2) = left.shape, right.shape
    rows, columns = gradient.shape
    if (rows, columns) != (p1 * p2, q1 * q2):
        gradient = torch.nn.functional.pad(gradient, (0, q1 * q2 - columns, 0, p1 * p2 - rows))
    rearranged = gradient.reshape(p1, p2, q1, q2).transpose(1, 2).reshape(p1 * q1, p2 * q2)
    of_left, of_right = right.flatten(1) @ rearranged.T, left.flatten(1) @ rearranged
    return of_left.view(left.shape), of_right.view(right.shape)


def _kron_each(
    left: Tensor,  # (s, p1, q1)
    right: Tensor,  # (s, p2, q2)
) -> Tensor:  # (s, p1 * p2, q1 * q2)
    blocks = left[:, :, None, :, None] * right[:, None, :, None, :]
    return blocks.flatten(3).flatten(1, 2)


def rearrange(
    matrix: Tensor,  # (p_1 * ... * p_D, q_1 * ... * q_D)
    row_shape: Shape,  # (p_1, ..., p_D)
    column_shape: Shape,  # (q_1, ..., q_D)
) -> Tensor:  # (p_1 * q_1, ..., p_D * q_D)
    """Return the tensor in which `X1 ⊗ ... ⊗ XD` is the outer product of vec X1, ..., vec XD (row-major).

    It permutes the entries, so it preserves norms and distances: the nearest sum of s Kronecker products is the nearest
    tensor of CP rank s, and for D = 2 the truncated SVD.

    Reference: Van Loan & Pitsianis, 1993.
    """
    count = len(row_shape)
    split = matrix.reshape(*row_shape, *column_shape)
    paired = split.permute(*[axis for i in range(count) for axis in (i, count + i)])
    return paired.reshape(*[p * q for p, q in zip(row_shape, column_shape, strict=True)])


def nearest_kron_sum(
    matrix: Tensor,  # (p_1 * ... * p_D, q_1 * ... * q_D), float64
    row_shape: Shape,
    column_shape: Shape,
    separation_rank: int,
    seed: int = 0,
) -> list[Tensor]:  # D factors, (s, p_i, q_i)
    """Return factors that minimize `||matrix - kron_sum(*factors)||_F`, largest term first.

    D = 1: the matrix itself.
    D = 2: the truncated SVD of `rearrange(matrix)`, the global optimum; its error is the tail of the singular values.
    D > 2: CP by alternating least squares (TensorLy's `parafac`), a local optimum from a seeded Gaussian start. A best
    approximation may not exist, hence the small l2 penalty.

    All factors but the first have orthonormal (D = 2) or unit (D > 2) terms; the first carries the weights. So no term
    is dead, even if its weight is zero. Signs are canonical: in all factors but the first, the largest entry of each
    term is positive.

    Raises:
        ValueError: if separation_rank is not in [1, the number of terms that suffices for every matrix].
    """
    tensor = rearrange(matrix, row_shape, column_shape).numpy()
    limit = tensor.size // max(tensor.shape)
    if not 1 <= separation_rank <= limit:
        raise ValueError(f"separation_rank must be in [1, {limit}] for these shapes, got {separation_rank}")
    if tensor.ndim == 1:
        return [matrix[None].clone()]
    with converging_numpy():
        weights, vectors = (_svd_terms if tensor.ndim == 2 else _cp_terms)(tensor, separation_rank, seed)
    columns = [torch.from_numpy(side) for side in vectors]
    return _in_convention(torch.from_numpy(weights), columns, row_shape, column_shape)


def recondition(
    *factors: Tensor,  # (s, p_i, q_i) each
) -> list[Tensor]:  # the same shapes
    """Return factors of the same sum in the convention of `nearest_kron_sum`, largest term first.

    D = 2: orthogonal terms, hence a condition number of 1, from QR decompositions of both factors and an SVD of their
    s x s core; the matrix is not formed. D > 2: no orthogonal form exists, so the terms are normalized and sorted.
    D = 1: unchanged.

    Raises:
        ValueError: if D = 2 and there are more terms than entries in a term of a factor: they cannot be orthogonal.
    """
    if len(factors) == 1:
        return list(factors)
    columns = [factor.flatten(1).T for factor in factors]
    least, count = min(map(len, columns)), len(factors[0])
    if len(columns) == 2 and count > least:
        raise ValueError(f"at most {least} terms of these factors can be orthogonal, got {count}")
    weights, vectors = (_orthogonal_terms if len(columns) == 2 else _unit_terms)(columns)
    return _in_convention(weights, vectors, [f.shape[1] for f in factors], [f.shape[2] for f in factors])


def balance(
    *factors: Tensor,  # (s, p_i, q_i) each
) -> list[Tensor]:  # the same shapes
    """Return factors of the same sum in which all factors of a term have the same norm, `||F_i[k]|| = sigma_k^(1/D)`.

    A term of weight zero is left unchanged: if all its factors were zero, no gradient would ever reach it.
    """
    lengths = torch.stack([factor.flatten(1).norm(dim=1) for factor in factors])  # (D, s)
    weights = lengths.prod(dim=0)
    scales = torch.where(weights > 0, weights ** (1 / len(factors)) / lengths, 1.0)
    return [factor * scale[:, None, None] for factor, scale in zip(factors, scales, strict=True)]


def _in_convention(
    weights: Tensor,  # (s,)
    vectors: list[Tensor],  # D of (p_i * q_i, s), unit columns
    row_shape: Sequence[int],
    column_shape: Sequence[int],
) -> list[Tensor]:  # D factors, (s, p_i, q_i)
    """Absorb weights and signs into the first factor; in the others the largest entry of each column is positive."""
    signs = [canonical_signs(columns) for columns in vectors[1:]]
    frame = [columns * sign for columns, sign in zip(vectors[1:], signs, strict=True)]
    first = vectors[0] * weights * torch.stack(signs).prod(dim=0)
    return [columns.T.reshape(-1, p, q) for columns, p, q in zip([first, *frame], row_shape, column_shape, strict=True)]


def canonical_signs(columns: Tensor) -> Tensor:  # (size, s) -> (s,)
    """Return the signs that make the largest entry of each column positive."""
    largest = columns.gather(0, columns.abs().argmax(dim=0, keepdim=True))[0]
    return torch.where(largest < 0, -1.0, 1.0).to(columns.dtype)


def _orthogonal_terms(columns: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    (left, left_core), (right, right_core) = (torch.linalg.qr(side) for side in columns)
    u, sigma, vt = svd(left_core @ right_core.T)
    return sigma, [left @ u, right @ vt.T]


def _unit_terms(columns: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    lengths = torch.stack([side.norm(dim=0) for side in columns])  # (D, s)
    weights = lengths.prod(dim=0)
    order = weights.argsort(descending=True, stable=True)
    # A zero column has no direction: use the first axis.
    units = [
        torch.where(length > 0, side / length, torch.eye(len(side), 1, dtype=side.dtype))
        for side, length in zip(columns, lengths, strict=True)
    ]
    return weights[order], [side[:, order] for side in units]


def _svd_terms(matrix: np.ndarray, rank: int, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    left, sigma, right = svd_interface(matrix, "truncated_svd", n_eigenvecs=rank)
    return sigma, [left, right.T]


def _cp_terms(tensor: np.ndarray, rank: int, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    # A Gaussian start: TensorLy's own ("svd", "random") pad with or draw from uniform[0, 1), nearly collinear columns.
    draws = np.random.default_rng(seed)
    norm = float(np.linalg.norm(tensor)) or 1.0
    start = [draws.standard_normal((size, rank)) for size in tensor.shape]
    cp = parafac(
        tensor / norm,
        rank,
        init=CPTensor((np.ones(rank), [columns.copy() for columns in start])),
        n_iter_max=PARAFAC_SWEEPS,
        tol=PARAFAC_TOLERANCE,
        l2_reg=PARAFAC_PENALTY,
        random_state=seed,
    )
    # The penalty drives superfluous terms to zero, where no gradient would reach them: such terms keep their initial
    # direction.
    lengths = [np.linalg.norm(columns, axis=0) for columns in cp.factors]
    alive = [
        np.where(length > VANISHED, columns, first)
        for columns, length, first in zip(cp.factors, lengths, start, strict=True)
    ]
    vectors = [columns / np.linalg.norm(columns, axis=0) for columns in alive]
    # The penalty also shrinks the terms: refit the weights by least squares to undo that.
    gram = np.prod([columns.T @ columns for columns in vectors], axis=0)
    overlaps = (unfolding_dot_khatri_rao(tensor, (None, vectors), 0) * vectors[0]).sum(axis=0)
    weights = np.linalg.lstsq(gram, overlaps, rcond=None)[0]
    order = np.argsort(-np.abs(weights), kind="stable")
    return weights[order], [columns[:, order] for columns in vectors]


def condition_number(*factors: Tensor) -> float:
    """Return `sqrt(sum_k prod_i ||factors[i][k]||^2) / ||kron_sum(*factors)||_F`, 1 for a zero sum.

    Large values mean that large terms cancel: the log10 is the number of digits lost. Orthogonal terms give exactly 1.

    Reference: Beylkin & Mohlenkamp, "Algorithms for numerical analysis in high dimensions", SISC 26:2133, 2005.
    """
    total = torch.linalg.matrix_norm(kron_sum(*factors))
    terms = torch.stack([factor.flatten(1).norm(dim=1) for factor in factors]).prod(dim=0)
    return float(terms.norm() / total) if total > 0 else 1.0


def pad_columns(matrix: Tensor, columns: int) -> Tensor:
    """Return the matrix with zero columns appended up to `columns`."""
    return torch.nn.functional.pad(matrix, (0, columns - matrix.shape[1]))
