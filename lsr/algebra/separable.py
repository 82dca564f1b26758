"""Sums of Kronecker products: tensors to tensors.

Axis letters, used throughout the package: s terms (the separation rank), two Kronecker factors per side, and p_i rows
and q_i columns in factor i. For the adapter's A (r x n) these are r_i and n_i, for B (m x r) they are m_i and r_i. A
single factor is the dense matrix itself. Pairs of indices are row-major: row (u, v) of X ⊗ Y is u * p2 + v.
"""

import torch
from torch import Tensor

from lsr.algebra.spectrum import leading_svd

Shape = tuple[int, ...]


def kron_sum(
    *factors: Tensor,  # (s, p_i, q_i): one or two
) -> Tensor:  # (p_1 * p_2, q_1 * q_2)
    """Return `sum_k factors[0][k] ⊗ factors[1][k]` as one matrix; a single factor is the matrix itself.

    Multiplies the two over s, then permutes (the rearrangement identity): nothing of size s * p * q is formed or kept
    for the backward pass.

    Reference: Van Loan & Pitsianis, "Approximation with Kronecker products", 1993.
    """
    if len(factors) == 1:
        return factors[0][0] if len(factors[0]) == 1 else factors[0].sum(dim=0)
    left, right = factors
    (count, p1, q1), (_, p2, q2) = left.shape, right.shape
    blocks = left.reshape(count, -1).T @ right.reshape(count, -1)
    return blocks.view(p1, q1, p2, q2).transpose(1, 2).reshape(p1 * p2, q1 * q2)


def rearrange(
    matrix: Tensor,  # (p_1 * p_2, q_1 * q_2)
    row_shape: Shape,  # (p_1, p_2)
    column_shape: Shape,  # (q_1, q_2)
) -> Tensor:  # (p_1 * q_1, p_2 * q_2)
    """Return the matrix in which `X ⊗ Y` is the outer product of vec X and vec Y (row-major).

    It permutes the entries, so it preserves norms and distances: the nearest sum of s Kronecker products is the
    truncated SVD.

    Reference: Van Loan & Pitsianis, 1993.
    """
    (p1, p2), (q1, q2) = row_shape, column_shape
    return matrix.reshape(p1, p2, q1, q2).transpose(1, 2).reshape(p1 * q1, p2 * q2)


def nearest_kron_sum(
    matrix: Tensor,  # (p_1 * p_2, q_1 * q_2), float64
    row_shape: Shape,
    column_shape: Shape,
    separation_rank: int,  # at most Form.max_separation_rank
) -> list[Tensor]:  # (s, p_i, q_i)
    """Return factors that minimize `||matrix - kron_sum(*factors)||_F`, largest term first; one factor: the matrix.

    They are the leading part of the SVD of `rearrange(matrix)`: the global optimum, whose error is the tail of the
    singular values. The second factor has orthonormal terms, the largest entry of each positive; the first carries the
    weights. So no term is dead, even if its weight is zero.
    """
    if len(row_shape) == 1:
        return [matrix[None].clone()]
    first, weights, second = leading_svd(rearrange(matrix, row_shape, column_shape), separation_rank)
    sides = zip(((first * weights).T, second), row_shape, column_shape, strict=True)
    return [terms.reshape(-1, p, q) for terms, p, q in sides]


def balance(
    *factors: Tensor,  # (s, p_i, q_i) each
) -> list[Tensor]:  # the same shapes
    """Return factors of the same sum in which both factors of a term have the same norm.

    A term of weight zero is left unchanged: if all its factors were zero, no gradient would ever reach it.
    """
    lengths = torch.stack([factor.flatten(1).norm(dim=1) for factor in factors])  # (factors, s)
    weights = lengths.prod(dim=0)
    scales = torch.where(weights > 0, weights ** (1 / len(factors)) / lengths, 1.0)
    return [factor * scale[:, None, None] for factor, scale in zip(factors, scales, strict=True)]
