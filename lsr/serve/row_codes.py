"""Rows of a bank as bytes: codes of a few bits, and their scales."""

from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor, nn

from lsr.algebra.rounding import from_bytes, from_codes, group_lengths, largest_level, to_bytes, to_codes


class RowCodes(nn.Module):
    """Rows of equal width as bytes, each on its own: codes of a few bits, then the scales of their groups in bfloat16.

    Each part of a row is cut into groups as an axis is.
    """

    lengths: Tensor  # of the groups

    def __init__(self, parts: Sequence[int], bits: int) -> None:
        super().__init__()
        lengths = [length for part in parts for length in group_lengths(part)]
        self.register_buffer("lengths", torch.tensor(lengths))
        self.bits = bits
        self.width = sum(parts)
        self.codes = ceil(self.width * bits / 8)  # bytes
        self.columns = self.codes + 2 * len(lengths)

    def pack(self, rows: Tensor) -> Tensor:  # (n, width) -> (n, columns), uint8
        """Return rows as bytes."""
        codes, scales = to_codes(rows.cpu().float().flatten(), self.lengths.cpu().repeat(len(rows)), self.bits)
        each = to_bytes(codes.view(rows.shape), self.bits), scales.view(len(rows), -1).view(torch.uint8)
        return torch.cat(each, dim=1)

    def unpack(self, stored: Tensor) -> Tensor:  # (n, columns), uint8 -> (n, width), float32
        """Return the rows for which bytes stand, on any device and under torch's compiler."""
        scales = self._scales(stored).repeat_interleave(self.lengths, dim=1, output_size=self.width)
        return from_codes(from_bytes(stored[:, : self.codes], self.bits, self.width), scales, self.bits)

    def are_bounded(self, stored: Tensor) -> bool:  # (n, columns), uint8
        """Return whether the scales in rows of bytes are 0 or more, and all values for which they may stand finite."""
        outermost = self._scales(stored).float() * largest_level(self.bits)
        return bool(((outermost >= 0) & outermost.isfinite()).all())

    def _scales(self, stored: Tensor) -> Tensor:  # (n, columns), uint8 -> (n, groups), bfloat16
        return stored[:, self.codes :].contiguous().view(torch.bfloat16)
