"""The slot in the bank that each row of the current batch reads."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

import torch
from torch import Tensor

NOBODY = 0  # the slot for rows without an adapter: zeros in layers, the base model's own state in heads


class Rows:
    """The slots of a batch's rows, (rows,) int64, read by all layers of a bank; None if no row has an adapter.

    The beams, or the several answers, of one prompt are `copies` consecutive rows that share a slot. All threads see
    the same rows, so one waits until another is done with its own.
    """

    def __init__(self) -> None:
        self.places: Tensor | None = None
        self.copies = 1
        self.one_thread = RLock()

    def __deepcopy__(self, memo: Any) -> "Rows":
        return Rows()  # a lock has no copy

    @contextmanager
    def being(self, places: Tensor | None, copies: int = 1) -> Iterator[None]:
        """Have the layers read these slots; within another such context of the same thread, only until the end."""
        with self.one_thread:
            before = self.places, self.copies
            self.places, self.copies = places, copies
            try:
                yield
            finally:
                self.places, self.copies = before

    def of(self, x: Tensor) -> Tensor | None:  # (rows,)
        """Return the slots of the rows of x.

        Raises:
            ValueError: if the number of rows does not match.
        """
        places = self.places
        if places is None or len(x) == len(places):
            return places
        if len(x) != self.copies * len(places):
            raise ValueError(f"adapter_names must hold one name per row of the batch, {len(x)}, got {len(places)}")
        return places.repeat_interleave(self.copies)


def grown(stack: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a stack zero-padded to a larger shape; the same stack if it is large enough."""
    larger = tuple(map(max, stack.shape, shape))
    if larger == tuple(stack.shape):
        return stack
    room = torch.zeros(larger, dtype=stack.dtype, device=stack.device)
    room[tuple(map(slice, stack.shape))] = stack
    return room
