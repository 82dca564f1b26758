"""Row pools: rows of equal width in one tensor; the adapter at each slot of a bank has a run of them.

A row is, for example, a direction of a low-rank update, a core, or the weights of a label in a head.
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
import torch._dynamo
from torch import Tensor

from lsr.serve.row_codes import rows_as

BASE_SLOT = 0  # the slot for rows of a batch without an adapter
ZERO_ROW = 0  # the row of zeros, for adapters that have fewer rows than others
# Both are small, so that a bank takes the memory of a new one with the same adapters, whatever it held before.
ROOM = 1 + 1 / 40  # rows of a pool after it has grown or shrunk, for each one in use
MAX_ROOM = 1 + 1 / 20  # likewise before it shrinks


class StoredPool(NamedTuple):
    """A row pool as stored in a file, without free rows."""

    values: Tensor  # (1 + rows of all slots, width) in float32 or bfloat16, or (..., bytes): the first row is zeros
    counts: Tensor  # (slots,), int64: the rows of each slot


class RowPool:
    """Rows of equal width in one tensor; each slot of a bank has a run of consecutive rows.

        values  (rows, width) in float32 or bfloat16, or (rows, bytes): codes; the first row is zeros, runs follow
        firsts  (slots,): the first row of each run; ZERO_ROW of an empty one
        counts  (slots,): the rows of each run
        steps   (most,): 0, 1, ..., as many as the longest run has rows

    `is_single`: no run has more than one row. How rows are stored depends on their parts: see `rows_as`.

    The memory depends on the present rows only: at most a share of MAX_ROOM is free.
    """

    def __init__(
        self,
        parts: Sequence[int],
        slots: int,
        precision: str,
        *,
        is_single: bool = False,
    ) -> None:
        self.form = rows_as(precision, parts)
        self.is_single = is_single
        self.values = torch.zeros(1, self.form.columns, dtype=self.form.dtype)
        self.firsts = torch.zeros(slots, dtype=torch.int32)
        self.counts = torch.zeros(slots, dtype=torch.int32)
        self.steps = torch.arange(1, dtype=torch.int32)
        self._reserved_steps = self.steps  # at least as many
        self._used = 1  # rows of all runs, and the row of zeros
        self._end = 1  # the first of the rows that are free after the last run
        self._mark_dynamic()

    def tensors(self) -> list[Tensor]:
        """Return all tensors."""
        return [
            self.values,
            self.firsts,
            self.counts,
            self.steps,
            self.form.lengths,
        ]

    def move_to(self, device: torch.device) -> None:
        """Move all tensors to a device."""
        self.values = self.values.to(device)
        self.firsts = self.firsts.to(device)
        self.counts = self.counts.to(device)
        self.steps = self.steps.to(device)
        self._reserved_steps = self.steps
        self.form.lengths = self.form.lengths.to(device)
        self._mark_dynamic()

    def take(self, slots: Tensor, most: int | None = None) -> Tensor:  # (n,) -> (n, most or fewer, width)
        """Return the rows of slots, padded with zeros; `most` is an upper bound of the rows per slot."""
        rows = self.firsts.index_select(0, slots)[:, None]
        if not self.is_single:
            steps = self.steps[:most]
            counts = self.counts.index_select(0, slots)[:, None]
            rows = torch.where(steps < counts, rows + steps, ZERO_ROW)
        stored = self.values.index_select(0, rows.flatten())
        return self.form.unpack(stored).unflatten(0, rows.shape)

    def count(self, slot: int) -> int:
        """Return the number of rows of a slot."""
        return int(self.counts[slot])

    @torch.no_grad()
    def rows(self, slot: int) -> Tensor:  # (count, width)
        """Return a copy of the rows of a slot."""
        stored = self.values[self._run(slot)]
        return self.form.unpack(stored.clone())

    @torch.no_grad()
    def pack(self, rows: Tensor) -> Tensor:  # (count, width) -> (count, columns)
        """Return rows in the form in which they are stored."""
        return self.form.pack(rows).to(self.values)

    def reserve(self, counts: Sequence[int]) -> None:
        """Allocate memory for further runs of these lengths, so that `put` needs none; no run changes."""
        count = sum(counts)
        if self._end + count > len(self.values):
            self._compact(self._used + count)
        self._reserve_steps(max(counts))

    @torch.no_grad()
    def put(self, slot: int, packed: Tensor | None) -> None:
        """Replace the rows of a slot by packed ones. If their number is another, `reserve` must have made room."""
        count = 0 if packed is None else len(packed)
        if count != self.count(slot):
            self._resize(slot, count)
        if packed is not None:
            self.values[self._run(slot)] = packed

    def _run(self, slot: int) -> slice:
        first = int(self.firsts[slot])
        return slice(first, first + self.count(slot))

    def _resize(self, slot: int, count: int) -> None:
        """Give a slot a run of another length, after the last one; its rows are lost."""
        old = self._run(slot)
        if old.stop == self._end:  # it was the last run
            self._end = old.start
        self.firsts[slot] = self._end if count else ZERO_ROW
        self.counts[slot] = count
        self._used += count - (old.stop - old.start)
        self._end += count
        self._set_steps()

    def trim(self, slots: int) -> None:
        """Free memory that these slots do not need; nothing is freed where that itself needs memory that is lacking."""
        with suppress(MemoryError, RuntimeError):  # torch raises RuntimeError
            self.set_slots(slots)
            if len(self.values) > MAX_ROOM * self._used:
                self._compact(self._used)
            if len(self._reserved_steps) > len(self.steps):
                self.steps = self.steps.clone()
                self._reserved_steps = self.steps
                self._mark_dynamic()

    def _compact(self, rows: int) -> None:
        """Move all runs, without gaps, into new memory for this many rows."""
        values = self._runs_of(self.counts, self.firsts, int(ROOM * rows))
        self.firsts = firsts_of(self.counts)
        self.values = values
        self._end = self._used
        self._mark_dynamic()

    def _set_steps(self) -> None:
        longest = max(1, int(self.counts.max()))
        if longest != len(self.steps):
            self._reserve_steps(longest)
            self.steps = self._reserved_steps[:longest]
        self._mark_dynamic()

    def _reserve_steps(self, longest: int) -> None:
        if longest > len(self._reserved_steps):
            self._reserved_steps = torch.arange(longest, dtype=torch.int32, device=self.steps.device)

    def _runs_of(
        self,
        counts: Tensor,
        firsts: Tensor,
        rows: int,
    ) -> Tensor:
        """Copy the row of zeros and these runs into a new tensor with this many rows."""
        moved = (firsts - firsts_of(counts)).repeat_interleave(counts)
        end = 1 + len(moved)
        sources = torch.arange(1, end, device=moved.device) + moved
        old = self.values
        values = old.new_empty(rows, old.shape[1])
        values[ZERO_ROW] = old[ZERO_ROW]
        torch.index_select(old, 0, sources, out=values[1:end])
        return values

    def set_slots(self, slots: int) -> None:
        """Set the number of slots; slots beyond it must be empty."""
        if not slots <= len(self.firsts) <= MAX_ROOM * slots:
            room = int(ROOM * slots)
            self.firsts = _of_length(self.firsts, room)
            self.counts = _of_length(self.counts, room)
            self._mark_dynamic()

    def move(self, slot: int, to: int) -> None:
        """Move the run of a slot to an empty slot."""
        for tensor in (self.firsts, self.counts):
            tensor[to] = tensor[slot]
            tensor[slot] = 0

    @property
    def is_unused(self) -> bool:
        """Whether no slot has rows."""
        return self._used == 1

    def copy_rows(self, slots: Sequence[int]) -> StoredPool:
        """Return copies of the rows of these slots, in this order."""
        order = list(slots)
        counts = self.counts[order]
        rows = 1 + int(counts.sum())
        values = self._runs_of(counts, self.firsts[order], rows)
        return StoredPool(values, counts.long())

    def restore(self, stored: StoredPool) -> None:
        """Set the result of `copy_rows`, which may come from an untrusted file.

        Raises:
            ValueError: if it does not fit this row pool, the first row is not zero, or a scale is out of bounds.
        """
        values, counts = stored
        self._check(values, counts)
        self.values = values.to(self.values.device)
        self.counts = counts.int().to(self.counts.device)
        self.firsts = firsts_of(self.counts)
        self._used = len(values)
        self._end = len(values)
        self._set_steps()

    def _check(self, values: Tensor, counts: Tensor) -> None:
        most = 1 if self.is_single else len(values)
        fits = (
            values.dtype is self.values.dtype
            and values.shape[1:] == self.values.shape[1:]
            and counts.dtype is torch.int64
            and counts.shape == self.counts.shape
            and bool(((counts >= 0) & (counts <= most)).all())
            and int(counts[BASE_SLOT]) == 0
            and int(counts.sum()) + 1 == len(values)
        )
        if not fits:
            raise ValueError("its values do not fit the base model or the names of its adapters")
        if not self.form.are_bounded(values):
            raise ValueError("its values must be finite, and the scales of its codes 0 or more")
        if self.form.unpack(values[:1]).any():
            raise ValueError("its first row, which stands for an adapter without rows, must be zeros")

    def _mark_dynamic(self) -> None:
        # A model that is compiled shall not be compiled again for other numbers of rows or slots.
        for tensor in (self.values, self.firsts, self.counts, self.steps):
            torch._dynamo.maybe_mark_dynamic(tensor, 0)


def firsts_of(counts: Tensor) -> Tensor:  # (slots,) -> (slots,), int32
    """Return the first row of each run, for runs of these lengths after the row of zeros; ZERO_ROW for an empty run."""
    firsts = counts.cumsum(0) + 1 - counts
    return torch.where(counts > 0, firsts, ZERO_ROW).int()


def largest(pools: Sequence[RowPool], slots: Tensor) -> int:
    """Return an upper bound of the rows per slot: a power of two, since a model is compiled anew for each value."""
    counts = [pool.counts.index_select(0, slots).max() for pool in pools]
    if not counts:
        return 0
    return round_up(int(torch.stack(counts).max()))


def round_up(count: int) -> int:
    """Round up to a power of two; 0 stays 0."""
    return 1 << (count - 1).bit_length() if count else 0


def _of_length(tensor: Tensor, length: int) -> Tensor:
    """Return a copy of this length, padded with zeros or truncated."""
    kept = tensor[:length]
    zeros = kept.new_zeros(length - len(kept))
    return torch.cat([kept, zeros])
