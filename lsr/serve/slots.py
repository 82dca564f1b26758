"""The slot of the bank that each row of the current batch reads, and modules with a stack of slots."""

from collections.abc import Mapping
from threading import RLock

import torch
from torch import Tensor, nn

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


class Stacked(nn.Module):
    """A module with the parts of many adapters: for each part a buffer whose first axis is the slot."""

    def __init__(self, rows: Rows, stacks: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._rows = (rows,)  # a tuple, because nn.Module must not register what all layers share
        self.parts = list(stacks)
        for position, stack in enumerate(stacks.values()):
            self.register_buffer(f"stack_{position}", stack)  # a part's name may have dots

    @property
    def rows(self) -> Rows:
        """The slots of the current batch."""
        return self._rows[0]

    def stacks(self) -> dict[str, Tensor]:
        """Return the stacks by part."""
        return {part: getattr(self, f"stack_{position}") for position, part in enumerate(self.parts)}

    def put(self, place: int, values: Mapping[str, Tensor]) -> None:
        """Put the parts of an adapter into its slot, zero-padded; stacks grow if they are too small."""
        for position, (part, stack) in enumerate(self.stacks().items()):
            if part in values:
                stack = _grown(stack, (place + 1, *values[part].shape))
                setattr(self, f"stack_{position}", stack)
            with torch.no_grad():
                stack[place].zero_()
                if part in values:
                    stack[place][tuple(map(slice, values[part].shape))].copy_(values[part])

    def make_room(self, places: int) -> None:
        """Grow the stacks to at least `places` slots."""
        for position, stack in enumerate(self.stacks().values()):
            setattr(self, f"stack_{position}", _grown(stack, (places, *stack.shape[1:])))


def _grown(stack: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a stack zero-padded to a larger shape; the same stack if it is large enough."""
    larger = tuple(map(max, stack.shape, shape))
    if larger == tuple(stack.shape):
        return stack
    room = torch.zeros(larger, dtype=stack.dtype, device=stack.device)
    room[tuple(map(slice, stack.shape))] = stack
    return room
