"""The parameters of many adapters in one tensor, exact or in a few bits, where each has as many rows as it needs.

A direction of a low-rank update, a core and the weights of a label in a head are such rows.
"""

from collections.abc import Mapping, Sequence
from threading import RLock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsr.algebra.levels import from_codes, to_bytes, to_codes, unpacked
from lsr.algebra.rounding import BITS, GROUP, WHOLE, group_lengths

NOBODY = 0  # the place for rows of a batch without an adapter
ZERO = 0  # the row of zeros, for who has fewer rows than others


class Stack(nn.Module):
    """Rows of equal width, and for each place of a bank which of them are its adapter's.

        values  (rows, width) in float32, bfloat16 or the given dtype, or (rows, bytes) of codes
        scales  (rows, groups): of codes; each part of a row is cut into groups of about 64 entries, none across parts
        slots   (places, most): the rows of each place, ZERO after its last

    Parts of fewer than 64 entries are in bfloat16 beside codes, as in `lsr.algebra.rounding`.
    """

    values: Tensor
    scales: Tensor
    slots: Tensor
    lengths: Tensor  # (groups,)

    def __init__(self, parts: Sequence[int], places: int, precision: str, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.width, self.is_exact = sum(parts), dtype is not None  # numbers beside parameters, which stay as they are
        self.bits = BITS.get(precision, 0) if dtype is None and min(parts) >= GROUP else 0
        lengths = [length for part in parts for length in group_lengths(part)] if self.bits else []
        stored = torch.uint8 if self.bits else dtype or WHOLE.get(precision, torch.bfloat16)
        columns = -(-self.width * self.bits // 8) if self.bits else self.width
        self.register_buffer("values", torch.zeros(1, columns, dtype=stored))
        self.register_buffer("scales", torch.zeros(1, len(lengths), dtype=torch.bfloat16))
        self.register_buffer("slots", torch.zeros(places, 1, dtype=torch.int32))
        self.register_buffer("lengths", torch.tensor(lengths, dtype=torch.int64), persistent=False)
        self._free: list[int] = []

    def take(self, places: Tensor, most: int | None = None) -> Tensor:  # (n,) -> (n, most or fewer, width)
        """Return the rows of places, zeros after their last; `most` leaves out what is zero for all of them."""
        slots = self.slots.index_select(0, places)[:, :most]
        if not self.bits:
            # Sparse gradients: an optimizer need not look at adapters without a row in the batch.
            return F.embedding(slots, self.values, padding_idx=ZERO, sparse=self.values.requires_grad)
        flat = slots.flatten()
        codes = unpacked(self.values.index_select(0, flat), self.bits, self.width)
        scales = self.scales.index_select(0, flat).repeat_interleave(self.lengths, dim=1, output_size=self.width)
        return from_codes(codes, scales, self.bits).unflatten(0, slots.shape)

    def own(self, place: int) -> list[int]:
        """Return which rows are those of a place."""
        return [row for row in self.slots[place].tolist() if row != ZERO]

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
        if (missing := count - len(self._free)) > 0:
            used = len(self.values)
            self.values, self.scales = (_grown(one, used + missing, 0) for one in (self.values, self.scales))
            self._free += range(used, len(self.values))
        own, self._free = self._free[:count], self._free[count:]
        self.slots[place, :count] = torch.tensor(own)
        if self.bits:
            codes, scales = to_codes(rows.cpu().float().flatten(), self.lengths.cpu().repeat(count), self.bits)
            rows = torch.stack([to_bytes(row, self.bits) for row in codes.view(count, -1)])
            self.scales[own] = scales.view(count, -1).to(self.scales)
        self.values[own] = rows.to(self.values)

    def tensors(self, places: Sequence[int]) -> dict[str, Tensor]:
        """Return what `restore` takes, for these places alone, in this order, without free rows."""
        slots = self.slots[list(places)].long()
        used, slots = torch.unique(torch.cat([torch.full_like(slots[:1], ZERO), slots]), return_inverse=True)
        return {"values": self.values[used], "scales": self.scales[used], "slots": slots[1:]}

    def restore(self, values: Tensor, scales: Tensor, slots: Tensor) -> None:
        """Take what `tensors` returned for as many places as there are.

        Raises:
            ValueError: if it does not fit, or its first row is not zeros.
        """
        pairs = ((self.values, values), (self.scales, scales))
        if not (
            all(given.dtype is own.dtype and given.shape == (len(values), own.shape[1]) for own, given in pairs)
            and (slots.dtype, slots.dim(), len(slots)) == (torch.int64, 2, len(self.slots))
            and (slots.numel() and slots.min() >= ZERO and slots.max() < len(values))
            and not (values[ZERO].any() or scales[ZERO].any())
        ):
            raise ValueError("values, scales and slots do not fit together, the bank's adapters or the base model")
        self.values, self.scales, self.slots = values, scales, slots.int()


def _grown(tensor: Tensor, rows: int, columns: int) -> Tensor:
    """Return a tensor of at least so many rows, doubled if there are too few, and columns; the same if it is enough."""
    if rows <= len(tensor) and columns <= tensor.shape[1]:
        return tensor
    most = len(tensor) if rows <= len(tensor) else max(rows, 2 * len(tensor))
    room = tensor.new_zeros(most, max(columns, tensor.shape[1]))
    room[: len(tensor), : tensor.shape[1]] = tensor
    return room


class Rows:
    """The places of the adapters of a batch's rows, (rows,) int64; None if no batch is passing through a bank.

    The beams, or the several answers, of one prompt are `copies` consecutive rows that share a place. All threads see
    the same rows, so one waits until another is done with its own.
    """

    def __init__(self) -> None:
        self.places: Tensor | None = None
        self.rank = 0  # at least the largest rank of these adapters: what a layer computes for each row
        self.copies = 1
        self.one_thread = RLock()

    def of(self, x: Tensor) -> Tensor | None:  # (rows,)
        """Return the places of the rows of x.

        Raises:
            ValueError: if the number of rows does not match.
        """
        places = self.places
        if places is None or len(x) == len(places):
            return places
        if len(x) != self.copies * len(places):
            raise ValueError(f"adapter_names must hold one name per row of the batch, {len(x)}, got {len(places)}")
        return places.repeat_interleave(self.copies)


class Stacked(nn.Module):
    """A module of the base model, and what adapters have for it: rows in stacks by name, at one place for each."""

    def __init__(self, base: nn.Module, rows: Rows) -> None:
        super().__init__()
        self.base, self.rows = base, rows
        self.stacks: dict[str, Stack] = {}

    def add_stack(self, name: str, stack: Stack) -> None:
        """Add a stack, on the device of the base module."""
        self.stacks[name] = stack.to(next(iter(self.base.state_dict().values())).device)
        self.add_module(f"stack_{len(self.stacks)}", stack)  # a tensor's name may have dots

    def fill(self, place: int, rows: Mapping[str, Tensor]) -> None:
        """Give a place these rows by stack, and none in the others."""
        for name, stack in self.stacks.items():
            stack.put(place, rows.get(name))

    def own(self, place: int) -> dict[str, Tensor]:  # (count, width) each
        """Return a copy of the rows of a place, by stack that has any."""
        where = torch.tensor([place], device=next(iter(self.buffers())).device)
        counts = {name: len(stack.own(place)) for name, stack in self.stacks.items()}
        found = {name: self.stacks[name].take(where, count)[0] for name, count in counts.items() if count}
        return {name: rows.detach().clone() for name, rows in found.items()}

    def tensors(self, places: Sequence[int]) -> dict[str, Tensor]:
        """Return the tensors of all stacks for these places, by stack and part."""
        parts = {name: stack.tensors(places) for name, stack in self.stacks.items()}
        return {f"{name}/{part}": value for name, its in parts.items() for part, value in its.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what `tensors` returned.

        Raises:
            ValueError: if it does not fit; KeyError if something is missing.
        """
        for name, stack in self.stacks.items():
            stack.restore(*(tensors[f"{name}/{part}"] for part in ("values", "scales", "slots")))
