"""How a layer's widths split into Kronecker factor shapes.

A width n, such as 768, becomes `in_shape` (n1, n2) with n <= n1 * n2: the factors span a slightly wider matrix, of
which the first n columns are used. So every width works, even a prime.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import prod

MAX_PADDING = 0.02  # the padding that a split may add, relative to the width


@lru_cache(maxsize=256)
def split_width(width: int, rank_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape (n1, n2), n1 * n2 >= width, with the fewest parameters, r1*n1 + r2*n2; (width,) of one rank.

    The product exceeds the width by at most 2 %. Ties go to the least padding, then to the longest first factor: on the
    output side the first factor is initialized to zero, and the second is its frame.
    """
    if len(rank_shape) == 1:
        return (width,)
    largest = width + int(MAX_PADDING * width)
    shapes = ((first, -(-width // first)) for first in range(largest, 0, -1))
    fitting = (shape for shape in shapes if prod(shape) <= largest)  # (width, 1) always does
    return min(fitting, key=lambda shape: (rank_shape[0] * shape[0] + rank_shape[1] * shape[1], prod(shape)))


def check_rank(rank: int, rows: int, columns: int) -> None:
    """Refuse a rank that no matrix of these sizes has.

    Raises:
        ValueError: names the ranks that it may have.
    """
    smaller = min(rows, columns)
    if not 1 <= rank <= smaller:
        raise ValueError(f"the rank must be in [1, {smaller}], the smaller side of {rows} x {columns}, got {rank}")


@dataclass(frozen=True)
class Form:
    """The shapes of one adapted layer: A (r x n) is cropped from n1 * n2 >= n columns, B is m x r."""

    rank_shape: tuple[int, ...]  # (r1, r2), r = r1 * r2; or (r,)
    in_shape: tuple[int, ...]  # (n1, n2)
    out_shape: tuple[int, ...]  # (m1, m2)
    separation_rank: int
    in_features: int
    out_features: int

    @classmethod
    def dense(cls, rank: int, in_features: int, out_features: int) -> "Form":
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
        """The number of terms that suffices for any A and B; 1 for a single factor, which is the whole matrix.

        It is min(r1 n1, r2 n2), or for B min(r1 m1, r2 m2) if that is less.
        """
        if len(self.rank_shape) == 1:
            return 1
        return min(
            r * n for shape in (self.in_shape, self.out_shape) for r, n in zip(self.rank_shape, shape, strict=True)
        )

    @property
    def factor_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the factors by name: `factor_A1` (s, r_1, n_1) and so on, `factor_B1` (s, m_1, r_1) and so on.

        Reference: Li & Sarwate 2025 (arXiv 2502.13568): 3,584 parameters for 768 x 768 as 32 * 24, ranks 2 * 2, s = 16.
        """
        sides = {"A": (self.rank_shape, self.in_shape), "B": (self.out_shape, self.rank_shape)}
        return {
            f"factor_{side}{i}": (self.separation_rank, *sizes)
            for side, shapes in sides.items()
            for i, sizes in enumerate(zip(*shapes, strict=True), start=1)
        }

    @property
    def parameters(self) -> int:
        """The number of parameters in all factors, s * sum_i r_i (n_i + m_i)."""
        return sum(map(prod, self.factor_shapes.values()))
