"""The modules of a bank, in place of those of the base model: linear layers and heads, in which each row has its own.

The parameters of many adapters are in one tensor, exact or in a few bits; each has as many rows as it needs, such as a
direction of a low-rank update, a core, or the weights of a label in a head. They are gathered by row of a batch and
applied in batched products.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from lsr.algebra.rounding import BITS, GROUP, WHOLE, RowCodes
from lsr.init.passes import widths
from lsr.loading.contents import by_label
from lsr.loading.updates import Frames, Update

DIRECTIONS, CORES, SCALING = "directions", "cores", "scaling"  # stacks of a layer
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


class Stacked(nn.Module):
    """A module of the base model, and what adapters have for it: rows in stacks by name, at one place for each."""

    def __init__(self, base: nn.Module, shared: Shared) -> None:
        super().__init__()
        self.base, self.shared = base, shared
        self.stacks: dict[str, Stack] = {}

    def add_stack(self, name: str, *parts: int, precision: str | None = None) -> None:
        """Add a stack, on the device of the base module."""
        stack = Stack(parts, self.shared.size, precision or self.shared.precision)
        self.stacks[name] = stack.to(next(iter(self.base.state_dict().values())).device)
        self.add_module(f"stack_{len(self.stacks)}", stack)  # a tensor's name may have dots

    @property
    def is_unused(self) -> bool:
        """Whether no adapter has anything here."""
        return all(stack.is_unused for stack in self.stacks.values())

    def fill(self, place: int, rows: Mapping[str, Tensor]) -> None:
        """Give a place these rows by stack, and none in the others."""
        for name, stack in self.stacks.items():
            stack.put(place, rows.get(name))


class BankLayer(Stacked):
    """A layer with low-rank updates of any rank, and cores between one pair of frames.

    `directions` holds a row of A and a column of B in each of its rows, as many as the rank of an adapter. An adapter
    with a core between the layer's frames, those of the first adapter that has a core, has one row of `cores` instead:
    the core, or only its diagonal. Both are without the scaling.
    """

    def __init__(self, base: nn.Module, shared: Shared) -> None:
        super().__init__(base, shared)
        self.n, self.m = widths(base)
        self.frames: Frames | None = None
        self.core_size = 0
        self.add_stack(DIRECTIONS, self.n, self.m)
        self.add_stack(SCALING, 1, precision="float32")

    def put(self, place: int, update: Update | None) -> None:
        """Store the update of the adapter at a place, instead of what is there; None if it does not adapt the layer."""
        rows = dict[str, Tensor]()
        if update is not None:
            core = update.core
            if core is not None and self.frames is None:
                self.set_frames(update.frames, core.numel())
            is_held = core is not None and self.frames is not None and update.frames.equals(self.frames)
            if core is not None and is_held and core.numel() == self.core_size:
                rows[CORES] = core.reshape(1, -1)
            else:
                update = update.plain()
                rows[DIRECTIONS] = torch.cat([update.frames.a, update.frames.b.T], dim=1)
            rows[SCALING] = torch.tensor([[update.scaling]])
        self.fill(place, rows)
        if self.frames is not None and self.stacks[CORES].is_unused:  # who had a core between them has left
            self.frames, self.core_size = None, 0
            del self.stacks[CORES], self.stack_3

    def set_frames(self, frames: Frames, core_size: int) -> None:
        """Set the frames, and make room for cores of so many entries between them."""
        self.frames, self.core_size = frames.to(self.stacks[SCALING].values.device), core_size
        self.add_stack(CORES, core_size)

    def update(self, place: int) -> Update | None:
        """Return a copy of the update of the adapter at a place; None if it does not adapt the layer."""
        scaling = self.stacks[SCALING].rows(place)
        if not len(scaling):
            return None
        if self.frames is not None and len(core := self.stacks[CORES].rows(place)):
            rank = len(self.frames.a)
            update = Update(self.frames, 1, core[0] if self.core_size == rank else core.view(rank, rank))
        else:
            a, b = self.stacks[DIRECTIONS].rows(place).split((self.n, self.m), dim=1)
            update = Update(Frames(a=a.contiguous(), b=b.T.contiguous()), 1)
        return update._replace(alpha=float(scaling) * update.divisor)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # (rows, ..., n) -> (rows, ..., m)
        """Return the base layer's output plus, for each row, the update of its adapter."""
        result: Tensor = self.base(x, *args, **kwargs)
        places, rank = self.shared.places, self.shared.rank
        if places is None:
            return result
        flat, flat_x = (value.reshape(len(x), -1, value.shape[-1]) for value in (result, x))
        scaling = self.stacks[SCALING].take(places)  # (rows, 1, 1)
        if rank:
            a, b = self.stacks[DIRECTIONS].take(places, rank).split((self.n, self.m), dim=2)  # (rows, rank, n or m)
            hidden = torch.bmm(flat_x, a.to(x.dtype).mT) * scaling  # (rows, tokens, rank)
            flat = torch.baddbmm(flat, hidden.to(flat.dtype), b.to(flat.dtype))
        if self.frames is not None:
            hidden, cores = F.linear(flat_x, self.frames.a.to(x.dtype)), self.stacks[CORES].take(places).to(x.dtype)
            size = hidden.shape[2]
            hidden = hidden * cores if cores.shape[2] == size else torch.bmm(hidden, cores.view(-1, size, size).mT)
            hidden = (hidden * scaling).flatten(0, 1).to(flat.dtype)
            flat = torch.addmm(flat.flatten(0, 1), hidden, self.frames.b.to(flat.dtype).T).view(flat.shape)
        return flat.view(result.shape)


class BankHead(Stacked):
    """Any module, with a stack for each tensor of its state dict, in which the tensor's first axis is the rows.

    Rows of a batch whose adapter has no such state, or that have no adapter, have the base model's output. An adapter
    may have another number of labels than the base model: each row has as many outputs as the largest head, of which
    those after its own are -inf.
    """

    def __init__(self, base: nn.Module, shared: Shared) -> None:
        super().__init__(base, shared)
        self.like = {name: value.detach().to("meta") for name, value in base.state_dict().items()}
        self.labelled = by_label(self.like, shared.labels)
        for name, value in self.like.items():
            self.add_stack(name, _as_rows(value).shape[1])

    def put(self, place: int, state: Mapping[str, Tensor] | None) -> None:
        """Store the state of the adapter at a place, instead of what is there; None if it has the base model's."""
        self.fill(place, {name: _as_rows(value) for name, value in (state or {}).items()})
        for stack in self.stacks.values():  # whose width is what each row of a batch takes
            stack.trim()

    def state(self, place: int) -> dict[str, Tensor]:
        """Return a copy of the state of the adapter at a place; nothing if it has that of the base model."""
        rows = {name: stack.rows(place) for name, stack in self.stacks.items()}
        return {name: self._shaped(name, own) for name, own in rows.items() if len(own)}

    def _shaped(self, name: str, rows: Tensor) -> Tensor:  # (..., most, width)
        like = self.like[name]
        return rows.reshape(*rows.shape[:-2], *([-1, *like.shape[1:]] if like.dim() else [])).to(like.dtype)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Apply to each row its own adapter's module, all rows in one batched call."""
        of_base, places = self.base(x, *args, **kwargs), self.shared.places
        if places is None:
            return of_base
        own = {name: max(1, self.shared.outputs) if name in self.labelled else None for name in self.stacks}
        states = {name: self._shaped(name, stack.take(places, own[name])) for name, stack in self.stacks.items()}

        def one(state: dict[str, Tensor], row: Tensor) -> Tensor:
            return functional_call(self.base, state, (row[None], *args), kwargs)[0]

        found: Tensor = vmap(one, randomness="different")(states, x)
        slots = self.stacks[(self.labelled or list(self.like))[0]].slots
        counts = (slots.index_select(0, places) > ZERO).sum(dim=1)  # of labels, each a row of its stack
        counts = counts.view(-1, *[1] * (found.dim() - 1))
        if self.labelled:
            most = max(slots.shape[1], self.shared.labels)
            found, of_base = (F.pad(one, (0, most - one.shape[-1]), value=-torch.inf) for one in (found, of_base))
            found = found.masked_fill(torch.arange(most, device=found.device) >= counts, -torch.inf)
        return torch.where(counts > 0, found, of_base)


def _as_rows(value: Tensor) -> Tensor:
    return value.reshape(len(value), -1) if value.dim() else value.reshape(1, 1)
