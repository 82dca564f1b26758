"""The parameters of many adapters in one tensor, exact or in a few bits; each has as many rows as it needs.

A direction of a low-rank update, a core and the weights of a label in a head are such rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsr.algebra.rounding import BITS, GROUP, WHOLE, RowCodes

NOBODY = 0  # the place for rows of a batch without an adapter
ZERO = 0  # the row of zeros, for who has fewer rows than others


class Stack(nn.Module):
    """Rows of equal width, and for each place of a bank which of them are its adapter's.

        values  (rows, width) in float32 or bfloat16, or (rows, bytes): codes
        slots   (places, most): the rows of each place, ZERO after its last

    In few bits, rows with a part of fewer than 64 entries are in bfloat16.
    """

    values: Tensor
    slots: Tensor

    def __init__(self, parts: Sequence[int], places: int, precision: str) -> None:
        super().__init__()
        self.codes = RowCodes(parts, BITS[precision]) if precision in BITS and min(parts) >= GROUP else None
        dtype = torch.uint8 if self.codes else WHOLE.get(precision, torch.bfloat16)
        self.register_buffer("values", torch.zeros(1, self.codes.columns if self.codes else sum(parts), dtype=dtype))
        self.register_buffer("slots", torch.zeros(places, 1, dtype=torch.int32))
        self._free: list[int] = []

    def take(self, places: Tensor, most: int | None = None) -> Tensor:  # (n,) -> (n, most or fewer, width)
        """Return the rows of places, zeros after their last; `most` leaves out what is zero for all of them."""
        slots = self.slots.index_select(0, places)[:, :most]
        rows = self.values.index_select(0, slots.flatten())
        return (self.codes.unpack(rows) if self.codes else rows).unflatten(0, slots.shape)

    def own(self, place: int) -> list[int]:
        """Return the rows of a place, by number."""
        return [row for row in self.slots[place].tolist() if row != ZERO]

    @torch.no_grad()
    def rows(self, place: int) -> Tensor:  # (count, width)
        """Return a copy of the rows of a place."""
        return self.take(torch.tensor([place], device=self.slots.device), len(self.own(place)))[0]

    @torch.no_grad()
    def put(self, place: int, rows: Tensor | None) -> None:  # (count, width)
        """Give a place these rows, or none, instead of its own; memory of which three quarters are free returns."""
        if place < len(self.slots):
            self._free = self.own(place) + self._free  # in front: as many rows as before stay where they are
        count = 0 if rows is None else len(rows)
        self.slots = _grown(self.slots, place + 1, count)
        self.slots[place] = ZERO
        used = len(self.values)
        if not count:
            if 4 * len(self._free) > 3 * used:
                its = self.stored(range(len(self.slots)))
                self.values, self.slots, self._free = its["values"], its["slots"].int(), []
                self.trim()
            return
        assert rows is not None
        self.values = _grown(self.values, used + count - len(self._free), 0)
        self._free += range(used, len(self.values))
        own, self._free = self._free[:count], self._free[count:]
        self.slots[place, :count] = torch.tensor(own)
        self.values[own] = (self.codes.pack(rows) if self.codes else rows).to(self.values)

    @property
    def is_unused(self) -> bool:
        """Whether no place has rows."""
        return not bool((self.slots != ZERO).any())

    def trim(self) -> None:
        """Drop the columns of slots that no place uses."""
        self.slots = self.slots[:, : max(1, int((self.slots != ZERO).any(dim=0).sum()))]

    def stored(self, places: Sequence[int]) -> dict[str, Tensor]:
        """Return values and slots for these places alone, in this order, without free rows."""
        slots = self.slots[list(places)].long()
        used, slots = torch.unique(torch.cat([torch.full_like(slots[:1], ZERO), slots]), return_inverse=True)
        return {"values": self.values[used], "slots": slots[1:]}


def largest(stacks: Sequence[Stack], places: Tensor) -> int:
    """Return at least the most rows that one of these places has: few values, for a compiled model is made for each."""
    counts = [(stack.slots[places] > ZERO).sum(dim=1).max() for stack in stacks]
    most = int(torch.stack(counts).max()) if counts else 0
    return 1 << (most - 1).bit_length() if most else 0


def _grown(tensor: Tensor, rows: int, columns: int) -> Tensor:
    """Return a tensor of at least so many rows, doubled if there are too few, and columns; the same if it is enough."""
    more, wider = max(0, rows - len(tensor)), max(0, columns - tensor.shape[1])
    return F.pad(tensor, (0, wider, 0, max(more, len(tensor)) if more else 0)) if more or wider else tensor


@dataclass
class Shared:
    """How a bank stores adapters, and whose the rows of a batch are; as all threads see them, one waits for another."""

    precision: str
    labels: int  # of the base model
    size: int = 1  # places, that of NOBODY included
    places: Tensor | None = None  # (rows,), while a batch passes through the bank
    rank: int = 0  # at least the largest of theirs: what a layer computes for each row
    outputs: int = 0  # likewise of the labels in their heads
    one_thread: Any = field(default_factory=RLock)
