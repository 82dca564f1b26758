"""How a bank stores rows of numbers: as they are, or in bytes, as codes of a few bits and their scales."""

from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor

from lsr.algebra.rounding import (
    BITS,
    GROUP,
    WHOLE,
    from_bytes,
    from_codes,
    group_lengths,
    largest_level,
    to_bytes,
    to_codes,
)


class WholeRows:
    """Rows of equal width as they are."""

    def __init__(self, columns: int, dtype: torch.dtype) -> None:
        self.columns = columns
        self.dtype = dtype
        self.lengths = torch.empty(0, dtype=torch.int64)  # lengths of the groups of codes

    def pack(self, rows: Tensor) -> Tensor:  # (n, width) -> (n, columns)
        """Return rows as they are stored."""
        return rows

    def unpack(self, stored: Tensor) -> Tensor:  # (n, columns) -> (n, width)
        """Return rows from what is stored."""
        return stored

    def are_bounded(self, stored: Tensor) -> bool:  # (n, columns)
        """Return whether all values are finite."""
        return bool(stored.isfinite().all())


class RowCodes(WholeRows):
    """Rows of equal width as bytes, each on its own: codes of a few bits, then the scales of their groups in bfloat16.

    Each part of a row is cut into groups as an axis is.
    """

    def __init__(self, parts: Sequence[int], bits: int) -> None:
        lengths = list[int]()
        for part in parts:
            lengths += group_lengths(part)
        self.bits = bits
        self.width = sum(parts)
        self.codes = ceil(self.width * bits / 8)  # bytes
        super().__init__(self.codes + 2 * len(lengths), torch.uint8)
        self.lengths = torch.tensor(lengths)

    def pack(self, rows: Tensor) -> Tensor:  # (n, width) -> (n, columns), uint8
        """Return rows as bytes."""
        count = len(rows)
        values = rows.cpu().float().flatten()
        codes, scales = to_codes(values, self.lengths.cpu().repeat(count), self.bits)
        code_bytes = to_bytes(codes.view(count, -1), self.bits)
        scale_bytes = scales.view(count, -1).view(torch.uint8)
        return torch.cat([code_bytes, scale_bytes], dim=1)

    def unpack(self, stored: Tensor) -> Tensor:  # (n, columns), uint8 -> (n, width), float32
        """Return the rows for which bytes stand, on any device and under torch's compiler."""
        codes = from_bytes(stored[:, : self.codes], self.bits, self.width)
        scales = self._scales(stored)
        scales = scales.repeat_interleave(self.lengths, dim=1, output_size=self.width)
        return from_codes(codes, scales, self.bits)

    def are_bounded(self, stored: Tensor) -> bool:  # (n, columns), uint8
        """Return whether the scales in rows of bytes are 0 or more, and all values for which they may stand finite."""
        outermost = self._scales(stored).float() * largest_level(self.bits)
        return bool(outermost.isfinite().all()) and bool((outermost >= 0).all())

    def _scales(self, stored: Tensor) -> Tensor:  # (n, columns), uint8 -> (n, groups), bfloat16
        return stored[:, self.codes :].contiguous().view(torch.bfloat16)


def rows_as(precision: str, parts: Sequence[int]) -> WholeRows:
    """Return how rows of these parts are stored; in few bits, those with a part of fewer than 64 are in bfloat16."""
    if precision in BITS and min(parts) >= GROUP:
        return RowCodes(parts, BITS[precision])
    return WholeRows(sum(parts), WHOLE.get(precision, torch.bfloat16))
