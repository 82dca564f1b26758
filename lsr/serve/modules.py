"""The modules of a bank, in place of those of the base model: linear layers and heads, in which each row has its own.

The parameters of many adapters are in one tensor, exact or in a few bits; each has as many rows as it needs, such as a
direction of a low-rank update, a core, or the weights of a label in a head. They are gathered by row of a batch and
applied in batched products.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import RLock
from typing import Any, NamedTuple, Self

import torch
import torch._dynamo
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from lsr.algebra.rounding import BITS, GROUP, WHOLE
from lsr.init.passes import widths
from lsr.loading.contents import by_label
from lsr.loading.task import MOST_LABELS
from lsr.loading.updates import Frames, Update
from lsr.serve.row_codes import RowCodes
from lsr.tuner.forms import SMALL

DIRECTIONS, CORES, SCALING = "directions", "cores", "scaling"  # stacks of a layer
NOBODY = 0  # the place for rows of a batch without an adapter
ZERO = 0  # the row of zeros, for who has fewer rows than others
# Both are small, so that a bank takes the memory of a new one with the same adapters, whatever it held before.
ROOM = 1 + 1 / 40  # rows of a stack after it has grown or shrunk, for each one in use
MOST_ROOM = 1 + 1 / 20  # likewise before it shrinks


class StoredStack(NamedTuple):
    """A stack as a file has it: without free rows."""

    values: Tensor  # (1 + rows of all places, width) in float32 or bfloat16, or (..., bytes): the first row is zeros
    counts: Tensor  # (places,), int64: the rows of each place


class Stack:
    """Rows of equal width, and for each place of a bank its run of them: the rows of its adapter, one after another.

        values  (rows, width) in float32 or bfloat16, or (rows, bytes): codes; the first row is zeros, runs follow
        firsts  (places,): the first row of each run; ZERO of an empty one
        counts  (places,): the rows of each run
        steps   (most,): 0, 1, ..., as many as the longest run has rows

    In few bits, rows with a part of fewer than 64 entries are in bfloat16. `is_single`: no run has more than one row.

    The memory depends on the rows that are there, and not on those that were: at most a share of MOST_ROOM is free.
    """

    def __init__(self, parts: Sequence[int], places: int, precision: str, *, is_single: bool = False) -> None:
        self.codes = RowCodes(parts, BITS[precision]) if precision in BITS and min(parts) >= GROUP else None
        dtype = torch.uint8 if self.codes else WHOLE.get(precision, torch.bfloat16)
        self.is_single = is_single
        self.values = torch.zeros(1, self.codes.columns if self.codes else sum(parts), dtype=dtype)
        self.firsts = torch.zeros(places, dtype=torch.int32)
        self.counts = torch.zeros(places, dtype=torch.int32)
        self.steps = torch.arange(1, dtype=torch.int32)
        self._used = 1  # rows of all runs, and that of zeros
        self._end = 1  # the first of the rows that are free after the last run
        self._mark_dynamic()

    def tensors(self) -> list[Tensor]:
        """Return all tensors."""
        lengths = [self.codes.lengths] if self.codes else []
        return [self.values, self.firsts, self.counts, self.steps, *lengths]

    def convert(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace each tensor by what `change` returns for it, such as a copy on another device."""
        self.values = change(self.values)
        self.firsts = change(self.firsts)
        self.counts = change(self.counts)
        self.steps = change(self.steps)
        if self.codes:
            self.codes.lengths = change(self.codes.lengths)
        self._mark_dynamic()

    def take(self, places: Tensor, most: int | None = None) -> Tensor:  # (n,) -> (n, most or fewer, width)
        """Return the rows of places, zeros after their last; `most` leaves out what is zero for all of them."""
        firsts = self.firsts.index_select(0, places)[:, None]
        if not self.is_single:
            steps = self.steps[:most]
            counts = self.counts.index_select(0, places)[:, None]
            firsts = torch.where(steps < counts, firsts + steps, ZERO)
        rows = self.values.index_select(0, firsts.flatten())
        return (self.codes.unpack(rows) if self.codes else rows).unflatten(0, firsts.shape)

    def count(self, place: int) -> int:
        """Return the number of rows of a place."""
        return int(self.counts[place])

    @torch.no_grad()
    def rows(self, place: int) -> Tensor:  # (count, width)
        """Return a copy of the rows of a place."""
        first = int(self.firsts[place])
        rows = self.values[first : first + self.count(place)].clone()
        return self.codes.unpack(rows) if self.codes else rows

    @torch.no_grad()
    def put(self, place: int, rows: Tensor | None) -> None:  # (count, width)
        """Give a place these rows, or none, instead of its own."""
        count = 0 if rows is None else len(rows)
        if count != self.count(place):
            self._resize(place, count)
        if rows is not None:
            first = int(self.firsts[place])
            packed = self.codes.pack(rows) if self.codes else rows
            self.values[first : first + count] = packed.to(self.values)

    def _resize(self, place: int, count: int) -> None:
        # Give a place a run of another length; what it held is lost.
        first = int(self.firsts[place])
        before = self.count(place)
        self.firsts[place] = ZERO
        self.counts[place] = 0
        self._used += count - before
        if first + before == self._end:  # it was the last run
            self._end = first
        if self._end + count > len(self.values) or len(self.values) > MOST_ROOM * self._used:
            self.values, self.firsts = self._runs_of(self.counts, self.firsts, int(ROOM * self._used))
            self._end = self._used - count
        if count:
            self.firsts[place] = self._end
            self.counts[place] = count
            self._end += count
        longest = max(1, int(self.counts.max()))
        if longest != len(self.steps):
            self.steps = torch.arange(longest, dtype=torch.int32, device=self.steps.device)
        self._mark_dynamic()

    def _runs_of(self, counts: Tensor, firsts: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        # Copy the row of zeros and these runs, one after another, into values of so many rows; and their first rows.
        ends = counts.cumsum(0) + 1
        new_firsts = ends - counts
        total = int(ends[-1])
        moved = (firsts - new_firsts).repeat_interleave(counts)
        sources = torch.arange(1, total, device=moved.device) + moved
        values = self.values.new_empty(rows, self.values.shape[1])
        values[ZERO] = self.values[ZERO]
        torch.index_select(self.values, 0, sources, out=values[1:total])
        return values, torch.where(counts > 0, new_firsts, ZERO).int()

    def set_places(self, places: int) -> None:
        """Make room for so many places; those after them must be empty."""
        if not places <= len(self.firsts) <= MOST_ROOM * places:
            room = int(ROOM * places)
            self.firsts = _of_length(self.firsts, room)
            self.counts = _of_length(self.counts, room)
            self._mark_dynamic()

    def move(self, place: int, to: int) -> None:
        """Move the run of a place to another one, which is empty."""
        for tensor in (self.firsts, self.counts):
            tensor[to] = tensor[place]
            tensor[place] = 0

    @property
    def is_unused(self) -> bool:
        """Whether no place has rows."""
        return self._used == 1

    def stored(self, places: Sequence[int]) -> StoredStack:
        """Return copies of the rows of these places alone, in this order."""
        counts = self.counts[list(places)]
        values, _ = self._runs_of(counts, self.firsts[list(places)], 1 + int(counts.sum()))
        return StoredStack(values, counts.long())

    def restore(self, stored: StoredStack) -> None:
        """Set what `stored` returned, perhaps read from a file that anything has changed.

        Raises:
            ValueError: if it does not fit this stack, the first row is not zeros, or a scale of codes is out of bounds.
        """
        values, counts = stored
        fits = values.dtype is self.values.dtype and values.shape[1:] == self.values.shape[1:] and len(values) > 0
        fits = fits and counts.dtype is torch.int64 and counts.shape == self.counts.shape
        most = 1 if self.is_single else len(values)
        if not fits or ((counts < 0) | (counts > most)).any() or counts[NOBODY] != 0 or counts.sum() + 1 != len(values):
            raise ValueError("its values do not fit the base model or the names of its adapters")
        if not self.is_bounded(values):
            raise ValueError("its values must be finite, and the scales of its codes 0 or more")
        if (self.codes.unpack(values[:1]) if self.codes else values[:1]).any():
            raise ValueError("its first row, which stands for an adapter without rows, must be zeros")
        device = self.values.device
        self.values = values.to(device)
        self.counts = counts.int().to(device)
        self.firsts = torch.where(self.counts > 0, self.counts.cumsum(0) + 1 - self.counts, ZERO).int()
        self.steps = torch.arange(max(1, int(counts.max())), dtype=torch.int32, device=device)
        self._used = self._end = len(values)
        self._mark_dynamic()

    def is_bounded(self, values: Tensor) -> bool:
        """Return whether stored values are finite, and so what codes and their scales stand for."""
        return self.codes.are_bounded(values) if self.codes else bool(values.isfinite().all())

    def _mark_dynamic(self) -> None:
        # A model that is compiled shall not be compiled again for other numbers of rows or places.
        for tensor in (self.values, self.firsts, self.counts, self.steps):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)


def largest(stacks: Sequence[Stack], places: Tensor) -> int:
    """Return at least the most rows that one of these places has: few values, for a compiled model is made for each."""
    counts = [stack.counts.index_select(0, places).max() for stack in stacks]
    return rounded_up(int(torch.stack(counts).max()) if counts else 0)


def rounded_up(count: int) -> int:
    """Return the least power of two that is not less; 0 of 0."""
    return 1 << (count - 1).bit_length() if count else 0


def _of_length(tensor: Tensor, length: int) -> Tensor:
    # A copy with zeros after its end, or without its last entries.
    kept = tensor[:length]
    return torch.cat([kept, kept.new_zeros(length - len(kept))])


class Version(NamedTuple):
    """What a bank has of an adapter in addition to its tensors; another one replaces it with the adapter."""

    note: dict[str, Any]  # what its task.json says
    base: Mapping[str, Any]  # the base model according to its configuration
    size: int  # at least its largest rank or number of labels: what its rows cost in a batch grows with it


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

    def add_stack(self, name: str, *parts: int, precision: str | None = None, is_single: bool = False) -> None:
        """Add a stack, on the device of the base module."""
        stack = Stack(parts, self.shared.size, precision or self.shared.precision, is_single=is_single)
        device = next(iter(self.base.state_dict().values())).device
        stack.convert(lambda tensor: tensor.to(device))
        self.stacks[name] = stack

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Stacks go where the module goes. They are not its buffers, for torch compiles anew for each size of a buffer.
        super()._apply(fn, recurse)
        for stack in self.stacks.values():
            stack.convert(fn)
        return self

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
        self.add_stack(SCALING, 1, precision="float32", is_single=True)

    def put(self, place: int, update: Update | None) -> None:
        """Store the update of the adapter at a place, instead of what is there; None if it does not adapt the layer."""
        rows = dict[str, Tensor]()
        if update is not None:
            core = update.core
            if core is not None and self.frames is None and self.may_share(update.frames):
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
            del self.stacks[CORES]

    def may_share(self, frames: Frames) -> bool:
        """Return whether A times the input of any row is finite: rows of others multiply it by zeros."""
        return bool((frames.a.abs() <= torch.finfo(next(self.base.parameters()).dtype).max ** 0.5).all())

    def check_counts(self) -> None:
        """Check that each place has a scaling and either directions or a core, or nothing.

        Raises:
            ValueError: if not, or if it has more directions than an adapter may have.
        """
        directions = self.stacks[DIRECTIONS].counts
        updates = (directions > 0).int()
        if self.frames is not None:
            updates = updates + self.stacks[CORES].counts
        if not updates.equal(self.stacks[SCALING].counts):
            raise ValueError("needed of each adapter: a scaling, and either directions or a core, or nothing")
        most = max(SMALL, min(self.n, self.m))
        if (directions > most).any():
            raise ValueError(f"the rank of an adapter is {int(directions.max())}; at most {most} is allowed")

    def set_frames(self, frames: Frames, core_size: int) -> None:
        """Set the frames, and make room for cores of so many entries between them."""
        self.frames, self.core_size = frames.to(self.stacks[SCALING].values.device), core_size
        self.add_stack(CORES, core_size, is_single=True)

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

    @property
    def _counted(self) -> Stack:
        """The stack whose counts say which places have a head, and with how many labels."""
        return self.stacks[(self.labelled or list(self.like))[0]]

    def check_counts(self) -> None:
        """Check that each place has as many rows of each tensor as the module has, or as it has labels, or none at all.

        Raises:
            ValueError: if not, or if it has more labels than an adapter may have; names the tensor.
        """
        first = self._counted.counts
        for name, stack in self.stacks.items():
            rows = len(_as_rows(self.like[name]))
            needed = first if name in self.labelled else (first > 0).int() * rows
            if not stack.counts.equal(needed):
                raise ValueError(f"{name} does not have the rows of a head for each adapter")
        if self.labelled and (first > MOST_LABELS).any():
            raise ValueError(f"a head has {int(first.max()):,} outputs; at most {MOST_LABELS:,} are allowed")

    def put(self, place: int, state: Mapping[str, Tensor] | None) -> None:
        """Store the state of the adapter at a place, instead of what is there; None if it has the base model's."""
        self.fill(place, {name: _as_rows(value) for name, value in (state or {}).items()})

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
        stack = self._counted
        counts = stack.counts.index_select(0, places).view(-1, *[1] * (found.dim() - 1))  # of labels
        if self.labelled:
            most = max(len(stack.steps), self.shared.labels)
            found, of_base = (F.pad(one, (0, most - one.shape[-1]), value=-torch.inf) for one in (found, of_base))
            found = found.masked_fill(torch.arange(most, device=found.device) >= counts, -torch.inf)
        return torch.where(counts > 0, found, of_base)


def _as_rows(value: Tensor) -> Tensor:
    return value.reshape(len(value), -1) if value.dim() else value.reshape(1, 1)
