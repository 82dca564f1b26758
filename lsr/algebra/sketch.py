"""A running sum of large matrices, kept as two small random projections from which its leading part is recovered."""

import torch
from torch import Tensor

from lsr.algebra.separable import Shape


class Sketch:
    """A sum of matrices (m, n), kept as its products with random test matrices, (m, k) and (l, n) with k << m, n.

    With k = 2 rank + 1 and l = 2 k + 1, the expected squared error is at most four times the error of the best
    approximation of that rank. A sum of rank k or less is recovered exactly.

    Reference: Tropp, Yurtsever, Udell & Cevher 2017, arXiv 1609.00048: a single pass, test matrices from the normal
    distribution.
    """

    def __init__(self, shape: Shape, rank: int, seed: int = 0) -> None:
        """Start with a sum of zero."""
        rows, columns = shape
        k = min(2 * rank + 1, rows, columns)
        draws = torch.Generator().manual_seed(seed)
        self._right = torch.randn(columns, k, dtype=torch.float64, generator=draws)
        self._left = torch.randn(2 * k + 1, rows, dtype=torch.float64, generator=draws)
        self._range = torch.zeros(rows, k, dtype=torch.float64)
        self._co_range = torch.zeros(2 * k + 1, columns, dtype=torch.float64)

    def add(
        self,
        matrix: Tensor,  # (m, n), of any dtype, on any device
        times: float = 1,
    ) -> None:
        """Add a matrix to the sum: multiplied on its device in at least float32, summed on the CPU in float64."""
        matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
        self._right, self._left = self._right.to(matrix), self._left.to(matrix)  # copies only the first time
        self._range.add_((matrix @ self._right).to(self._range), alpha=times)
        self._co_range.add_((self._left @ matrix).to(self._co_range), alpha=times)

    def is_finite(self) -> bool:
        """Return whether only finite values have been added."""
        return bool(torch.isfinite(self._range).all() and torch.isfinite(self._co_range).all())

    def pair(self) -> tuple[Tensor, Tensor]:  # (m, k), (k, n), float64
        """Return matrices whose product approximates the sum; the columns of the first are orthonormal."""
        left = torch.linalg.qr(self._range).Q
        # The system has full rank and is well conditioned. The default driver, gelsy, is not deterministic.
        right = torch.linalg.lstsq(self._left.to(left) @ left, self._co_range, driver="gels").solution
        return left, right
