"""Which place in the bank each row of the current batch takes its numbers from."""

import torch
from torch import Tensor

NOBODY = 0  # the place of rows without an adapter: its stacks hold zeros, and the base model's own head


class Rows:
    """The places of a batch's rows, (rows,) int64, which all layers of a bank look up; None: none has an adapter.

    Beams, and several answers to one prompt, are `copies` rows in a row that share a place.
    """

    def __init__(self) -> None:
        self.places: Tensor | None = None
        self.copies = 1

    def of(self, x: Tensor) -> Tensor | None:  # (rows,)
        """Return the places of the rows of x.

        Raises:
            ValueError: if x has another number of rows.
        """
        places = self.places
        if places is None or len(x) == len(places):
            return places
        if len(x) != self.copies * len(places):
            raise ValueError(f"adapter_names must hold one name a row of the batch, {len(x)}, got {len(places)}")
        return places.repeat_interleave(self.copies)


def grown(stack: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a stack of a larger shape, with zeros around what it holds; the same one if it is large enough."""
    larger = tuple(map(max, stack.shape, shape))
    if larger == tuple(stack.shape):
        return stack
    room = torch.zeros(larger, dtype=stack.dtype, device=stack.device)
    room[tuple(map(slice, stack.shape))] = stack
    return room
