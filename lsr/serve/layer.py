"""A linear layer with the adapters of a bank: parameters are gathered by row and applied in batched products."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsr.init.passes import widths
from lsr.loading.updates import Frames, Update
from lsr.serve.stack import Shared, Stacked

DIRECTIONS, CORES, SCALING = "directions", "cores", "scaling"  # stacks


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
        if update is None:
            self.fill(place, {})
            self._drop_frames()
            return
        core = update.core
        if core is not None and self.frames is None:
            self.set_frames(update.frames, core.numel())
        is_held = core is not None and self.frames is not None and update.frames.equals(self.frames)
        if core is not None and is_held and core.numel() == self.core_size:
            rows = {CORES: core.reshape(1, -1)}
        else:
            update = update.plain()
            rows = {DIRECTIONS: torch.cat([update.frames.a, update.frames.b.T], dim=1)}
        self.fill(place, {**rows, SCALING: torch.tensor([[update.scaling]])})
        self._drop_frames()

    def _drop_frames(self) -> None:  # if who had a core between them has left
        if self.frames is not None and self.stacks[CORES].is_unused:
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
