"""The parameters of many adapters in one tensor, exact or in a few bits, where each has as many rows as it needs.

A direction of a low-rank update, a core and the weights of a label in a head are such rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from lsr.algebra.levels import from_codes, to_bytes, to_codes, unpacked
from lsr.algebra.rounding import BITS, GROUP, WHOLE, group_lengths

NOBODY = 0  # the place for rows of a batch without an adapter
ZERO = 0  # the row of zeros, for who has fewer rows than others


class Stack(nn.Module):
    """Rows of equal width, and for each place of a bank which of them are its adapter's.

        values  (rows, width) in float32 or bfloat16, or (rows, bytes): codes, then their scales
        slots   (places, most): the rows of each place, ZERO after its last

    For codes, each part of a row is cut into groups of about 64 entries with a scale in bfloat16, as in
    `lsr.algebra.rounding`; rows with shorter parts are in bfloat16 as a whole. While adapters are trained, their rows
    are in `trained`, by place.
    """

    values: Tensor
    slots: Tensor
    lengths: Tensor  # of the groups of a row

    def __init__(self, parts: Sequence[int], places: int, precision: str) -> None:
        super().__init__()
        self.width = columns = sum(parts)
        self.bits = BITS.get(precision, 0) if min(parts) >= GROUP else 0
        dtype, lengths = WHOLE.get(precision, torch.bfloat16), [each for part in parts for each in group_lengths(part)]
        if self.bits:
            dtype, self.code_bytes = torch.uint8, -(-self.width * self.bits // 8)
            columns = self.code_bytes + 2 * len(lengths)
        self.register_buffer("values", torch.zeros(1, columns, dtype=dtype))
        self.register_buffer("slots", torch.zeros(places, 1, dtype=torch.int32))
        self.register_buffer("lengths", torch.tensor(lengths))
        self.trained: dict[int, nn.Parameter] = {}
        self._free: list[int] = []

    def take(self, places: Tensor, most: int | None = None) -> Tensor:  # (n,) -> (n, most or fewer, width)
        """Return the rows of places, zeros after their last; `most` leaves out what is zero for all of them."""
        if self.trained:
            distinct, at = torch.unique(torch.cat([places.new_tensor([NOBODY]), places]), return_inverse=True)
            each = [self.trained.get(place, self.values[self.slots[place]]) for place in distinct.tolist()]
            return pad_sequence(each, batch_first=True).index_select(0, at[1:])[:, :most]
        slots = self.slots.index_select(0, places)[:, :most]
        rows = self.values.index_select(0, slots.flatten())
        if self.bits:
            codes, scales = rows[:, : self.code_bytes], rows[:, self.code_bytes :].contiguous().view(torch.bfloat16)
            scales = scales.repeat_interleave(self.lengths, dim=1, output_size=self.width)
            rows = from_codes(unpacked(codes, self.bits, self.width), scales, self.bits)
        return rows.unflatten(0, slots.shape)

    def own(self, place: int) -> list[int]:
        """Return which rows are those of a place."""
        return [row for row in self.slots[place].tolist() if row != ZERO]

    @torch.no_grad()
    def rows(self, place: int) -> Tensor:  # (count, width)
        """Return a copy of the rows of a place."""
        return self.take(torch.tensor([place], device=self.slots.device), len(self.own(place)))[0]

    @torch.no_grad()
    def put(self, place: int, rows: Tensor | None) -> None:  # (count, width)
        """Give a place these rows, or none, instead of its own."""
        if place < len(self.slots):
            self._free = self.own(place) + self._free  # in front: as many rows as before stay where they are
        count = 0 if rows is None else len(rows)
        self.slots = _grown(self.slots, place + 1, count)
        self.slots[place] = ZERO
        if rows is None:
            return
        if count > len(self._free):
            used = len(self.values)
            self.values = _grown(self.values, used + count - len(self._free), 0)
            self._free += range(used, len(self.values))
        own, self._free = self._free[:count], self._free[count:]
        self.slots[place, :count] = torch.tensor(own)
        self.values[own] = (self._coded(rows.cpu().float()) if self.bits else rows).to(self.values)

    def _coded(self, rows: Tensor) -> Tensor:  # (count, width) -> (count, bytes)
        codes, scales = to_codes(rows.flatten(), self.lengths.cpu().repeat(len(rows)), self.bits)
        of_rows = torch.stack([to_bytes(row, self.bits) for row in codes.view(rows.shape)])
        return torch.cat([of_rows, scales.view(len(rows), -1).view(torch.uint8)], dim=1)

    def stored(self, places: Sequence[int]) -> dict[str, Tensor]:
        """Return what `restore` takes, for these places alone, in this order, without free rows."""
        slots = self.slots[list(places)].long()
        used, slots = torch.unique(torch.cat([torch.full_like(slots[:1], ZERO), slots]), return_inverse=True)
        return {"values": self.values[used], "slots": slots[1:]}

    def restore(self, values: Tensor, slots: Tensor) -> None:
        """Take what `stored` returned for as many places as there are.

        Raises:
            ValueError: if it does not fit.
        """
        fits = values.dtype is self.values.dtype and values.shape[1:] == self.values.shape[1:]
        if not fits or len(slots) != len(self.slots) or not 0 <= slots.min() <= slots.max() < len(values):
            raise ValueError("values and slots do not fit together, the bank's adapters or the base model")
        self.values, self.slots = values, slots.int()


def _grown(tensor: Tensor, rows: int, columns: int) -> Tensor:
    """Return a tensor of at least so many rows, doubled if there are too few, and columns; the same if it is enough."""
    more, wider = max(0, rows - len(tensor)), max(0, columns - tensor.shape[1])
    return F.pad(tensor, (0, wider, 0, max(more, len(tensor)) if more else 0)) if more or wider else tensor
