"""Storage of a bank's rows: unchanged, or quantized to bytes of codes with their scales."""

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
    """Rows of equal width, stored unchanged."""

    def __init__(self, columns: int, dtype: torch.dtype) -> None:
        self.columns = columns
        self.dtype = dtype
        self.lengths = torch.empty(0, dtype=torch.int64)  # lengths of the groups of codes

    def pack(self, rows: Tensor) -> Tensor:  # (n, width) -> (n, columns)
        """Encode rows for storage."""
        return rows

    def unpack(self, stored: Tensor) -> Tensor:  # (n, columns) -> (n, width)
        """Decode stored rows."""
        return stored

    def are_bounded(self, stored: Tensor) -> bool:  # (n, columns)
        """Return whether all values are finite."""
        return bool(stored.isfinite().all())


class RowCodes(WholeRows):
    """Quantized rows of equal width as bytes: each has its codes, then the scales of their groups in bfloat16.

    Each part of a row is divided into groups like an axis of a tensor.
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
        """Quantize rows to bytes."""
        count = len(rows)
        values = rows.cpu().float().flatten()
        codes, scales = to_codes(values, self.lengths.cpu().repeat(count), self.bits)
        code_bytes = to_bytes(codes.view(count, -1), self.bits)
        scale_bytes = scales.view(count, -1).view(torch.uint8)
        return torch.cat([code_bytes, scale_bytes], dim=1)

    def unpack(self, stored: Tensor) -> Tensor:  # (n, columns), uint8 -> (n, width), float32
        """Dequantize rows, on any device and under torch.compile."""
        codes = from_bytes(stored[:, : self.codes], self.bits, self.width)
        scales = self._scales(stored)
        scales = scales.repeat_interleave(self.lengths, dim=1, output_size=self.width)
        return from_codes(codes, scales, self.bits)

    def are_bounded(self, stored: Tensor) -> bool:  # (n, columns), uint8
        """Return whether all scales are at least 0 and all values that they can encode are finite."""
        outermost = self._scales(stored).float() * largest_level(self.bits)
        return bool(outermost.isfinite().all()) and bool((outermost >= 0).all())

    def _scales(self, stored: Tensor) -> Tensor:  # (n, columns), uint8 -> (n, groups), bfloat16
        # A copy, even of a single row, whose scales are contiguous: after an odd number of bytes they have no view.
        scale_bytes = stored[:, self.codes :].clone(memory_format=torch.contiguous_format)
        return scale_bytes.view(torch.bfloat16)


def rows_as(precision: str, parts: Sequence[int]) -> WholeRows:
    """Return the storage for rows with parts of these widths; in few bits, rows with a part below 64 use bfloat16."""
    if precision in BITS and min(parts) >= GROUP:
        return RowCodes(parts, BITS[precision])
    return WholeRows(sum(parts), WHOLE.get(precision, torch.bfloat16))
