"""The slot in the bank that each row of the current batch reads."""

import torch
from torch import Tensor

NOBODY = 0  # the slot for rows without an adapter: zeros in layers, the base model's own state in heads


class Rows:
    """The slots of a batch's rows, (rows,) int64, read by all layers of a bank; None if no row has an adapter.

    The beams, or the several answers, of one prompt are `copies` consecutive rows that share a slot.
    """

    def __init__(self) -> None:
        self.places: Tensor | None = None
        self.copies = 1

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
