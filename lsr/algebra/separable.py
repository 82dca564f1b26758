"""Sums of Kronecker products: tensors to tensors; and how a layer's widths split into the shapes of their factors.

Axis letters, used throughout the package: s terms (the separation rank), two Kronecker factors per side, and p_i rows
and q_i columns in factor i. For the adapter's A (r x n) these are r_i and n_i, for B (m x r) they are m_i and r_i. A
single factor is the dense matrix itself. Pairs of indices are row-major: row (u, v) of X ⊗ Y is u * p2 + v.

A width n, such as 768, becomes `in_shape` (n1, n2) with n <= n1 * n2: the factors span a slightly wider matrix, of
which the first n columns are used. So every width works, even a prime.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from lsr.algebra.spectrum import leading_svd

Shape = tuple[int, ...]
MAX_PADDING = 0.02  # the padding that a split may add, relative to the width


@lru_cache(maxsize=256)
def split_width(width: int, rank_shape: Shape) -> Shape:
    """Return the shape (n1, n2), n1 * n2 >= width, with the fewest parameters, r1*n1 + r2*n2; (width,) for one rank.

    The product exceeds the width by at most 2 %. Ties go to the least padding, then to the longest first factor: on the
    output side the first factor is initialized to zero, and the second is its basis.
    """
    if len(rank_shape) == 1:
        return (width,)
    largest = width + int(MAX_PADDING * width)
    r1, r2 = rank_shape

    def cost(shape: Shape) -> tuple[int, int]:
        n1, n2 = shape
        return r1 * n1 + r2 * n2, n1 * n2

    shapes = ((first, -(-width // first)) for first in range(largest, 0, -1))
    fitting = (shape for shape in shapes if prod(shape) <= largest)  # (width, 1) always does
    return min(fitting, key=cost)


@dataclass(frozen=True)
class FactorShapes:
    """The shapes of one adapted layer: A (r x n) is cropped from n1 * n2 >= n columns, B is m x r."""

    rank_shape: Shape  # (r1, r2), r = r1 * r2; or (r,)
    in_shape: Shape  # (n1, n2)
    out_shape: Shape  # (m1, m2)
    separation_rank: int
    in_features: int
    out_features: int

    @classmethod
    def dense(cls, rank: int, in_features: int, out_features: int) -> "FactorShapes":
        """Return the form of one dense A (r, n) and B (m, r)."""
        return cls((rank,), (in_features,), (out_features,), 1, in_features, out_features)

    @property
    def rank(self) -> int:
        """The rank r of the update."""
        return prod(self.rank_shape)

    @property
    def in_width(self) -> int:
        """The columns that the factors of A span, padding included."""
        return prod(self.in_shape)

    @property
    def out_width(self) -> int:
        """The rows that the factors of B span, padding included."""
        return prod(self.out_shape)

    @property
    def max_separation_rank(self) -> int:
        """The number of terms that suffices to represent any A and B; 1 for a single factor, the whole matrix.

        It is min(r1 n1, r2 n2), or for B min(r1 m1, r2 m2) if that is less.
        """
        if len(self.rank_shape) == 1:
            return 1
        r1, r2 = self.rank_shape
        n1, n2 = self.in_shape
        m1, m2 = self.out_shape
        return min(r1 * n1, r2 * n2, r1 * m1, r2 * m2)

    @property
    def factor_shapes(self) -> dict[str, Shape]:
        """The shapes of the factors by name: `factor_A1` (s, r_1, n_1) and so on, `factor_B1` (s, m_1, r_1) and so on.

        Reference: Li & Sarwate 2025 (arXiv 2502.13568): 3,584 parameters for 768 x 768 as 32 * 24, ranks 2 * 2, s = 16.
        """
        sides = {
            "A": zip(self.rank_shape, self.in_shape, strict=True),
            "B": zip(self.out_shape, self.rank_shape, strict=True),
        }
        shapes: dict[str, Shape] = {}  # torch.compile does not trace dict[...]()
        for side, factors in sides.items():
            for number, sizes in enumerate(factors, 1):
                shapes[f"factor_{side}{number}"] = (self.separation_rank, *sizes)
        return shapes

    @property
    def parameters(self) -> int:
        """The number of parameters in all factors, s * sum_i r_i (n_i + m_i)."""
        return sum(map(prod, self.factor_shapes.values()))


def kron_sum(
    *factors: Tensor,  # (s, p_i, q_i): one or two
) -> Tensor:  # (p_1 * p_2, q_1 * q_2)
    """Return `sum_k factors[0][k] ⊗ factors[1][k]` as one matrix; a single factor is the matrix itself.

    Multiplies the two over s, then permutes (the rearrangement identity): nothing of size s * p * q is formed or kept
    for the backward pass.

    Reference: Van Loan & Pitsianis, "Approximation with Kronecker products", 1993.
    """
    left, *others = factors
    if not others:
        return left[0] if len(left) == 1 else left.sum(dim=0)
    (right,) = others
    count, p1, q1 = left.shape
    _, p2, q2 = right.shape
    blocks = left.reshape(count, -1).T @ right.reshape(count, -1)
    return blocks.view(p1, q1, p2, q2).transpose(1, 2).reshape(p1 * p2, q1 * q2)


def nearest_kron_sum(
    matrix: Tensor,  # (p_1 * p_2, q_1 * q_2), float64
    row_shape: Shape,  # (p_1, p_2)
    column_shape: Shape,  # (q_1, q_2)
    separation_rank: int,  # limit: FactorShapes.max_separation_rank
) -> list[Tensor]:  # (s, p_i, q_i)
    """Return factors that minimize `||matrix - kron_sum(*factors)||_F`, largest term first; one factor: the matrix.

    They are the leading part of the SVD of the matrix with its entries permuted such that `X ⊗ Y` is the outer product
    of vec X and vec Y: the global optimum, whose error is the tail of the singular values. The second factor has
    orthonormal terms, the largest entry of each positive; the first carries the weights. So no term is dead, even if
    its weight is zero.

    Reference: Van Loan & Pitsianis, 1993.
    """
    if len(row_shape) == 1:
        return [matrix[None].clone()]
    p1, p2 = row_shape
    q1, q2 = column_shape
    permuted = matrix.reshape(p1, p2, q1, q2).transpose(1, 2).reshape(p1 * q1, p2 * q2)
    first, weights, second = leading_svd(permuted, separation_rank)
    return [(first * weights).T.reshape(-1, p1, q1), second.reshape(-1, p2, q2)]


def balance(
    *factors: Tensor,  # (s, p_i, q_i) each
) -> list[Tensor]:  # the same shapes
    """Return factors of the same sum in which both factors of a term have the same norm.

    A term of weight zero is left unchanged: if all its factors were zero, no gradient would ever reach it.
    """
    lengths = torch.stack([factor.flatten(1).norm(dim=1) for factor in factors])  # (factors, s)
    weights = lengths.prod(dim=0)
    means = weights ** (1 / len(factors))
    scales = torch.where(weights > 0, means / lengths, 1.0)
    return [factor * scale[:, None, None] for factor, scale in zip(factors, scales, strict=True)]
