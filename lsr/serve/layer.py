"""A linear layer with the adapters of a bank: each row of a batch is multiplied by its own adapter's parameters.

There is no loop over adapters and no copy of activations: parameters are gathered by row and applied in batched
products.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsr.init.passes import widths
from lsr.loading.contents import Frames, Update
from lsr.serve.stack import Rows, Stack, Stacked


class BankLayer(Stacked):
    """A layer with low-rank updates of any rank, and cores between one pair of frames.

    `directions` holds a row of A and a column of B in each of its rows, as many as the rank of an adapter. An adapter
    with a core between the layer's frames, those of the first adapter that has a core, has one row of `cores` instead:
    the core, or only its diagonal. Both are without the scaling.
    """

    frames: Frames | None

    def __init__(self, base: nn.Module, rows: Rows, places: int, precision: str) -> None:
        super().__init__(base, rows)
        self.n, self.m = widths(base)
        self._precision = precision
        self.frames = None
        self.add_stack("directions", Stack((self.n, self.m), places, precision))
        self.add_stack("scaling", Stack((1,), places, precision, torch.float32))

    def put(self, place: int, update: Update | None) -> None:
        """Store the update of the adapter at a place, instead of what is there; None if it does not adapt the layer."""
        if update is None:
            self.fill(place, {})
            return
        core, scaling = update.core, torch.tensor([[update.scaling]])
        if core is not None and self.frames is None:
            self.set_frames(update.frames, core.numel())
        if core is not None and core.numel() == self.stacks["cores"].width and self._holds(update.frames):
            self.fill(place, {"cores": core.reshape(1, -1), "scaling": scaling})
        else:
            frames = update.plain().frames
            self.fill(place, {"directions": torch.cat([frames.a, frames.b.T], dim=1), "scaling": scaling})

    def _holds(self, frames: Frames) -> bool:
        return self.frames is not None and self.frames.equals(frames)

    def set_frames(self, frames: Frames, width: int) -> None:
        """Set the frames, and make room for cores of so many entries between them.

        Raises:
            ValueError: if they do not fit the layer.
        """
        a, b, rank = frames.a, frames.b, len(frames.a)
        if (*a.shape, *b.shape) != (rank, self.n, self.m, rank) or width not in (rank, rank * rank):
            raise ValueError(f"frames {tuple(a.shape)} and {tuple(b.shape)} do not fit a layer of {self.m} x {self.n}")
        slots = self.stacks["directions"].slots
        self.frames = frames.to(slots.device)
        self.add_stack("cores", Stack((width,), len(slots), self._precision))

    def update(self, place: int) -> Update | None:
        """Return a copy of the update of the adapter at a place; None if it does not adapt the layer."""
        own = self.own(place)
        if "cores" in own and self.frames is not None:
            core, rank = own["cores"][0], len(self.frames.a)
            return Update(self.frames, float(own["scaling"]), core if len(core) == rank else core.view(rank, rank))
        if "directions" not in own:
            return None
        a, b = own["directions"].split((self.n, self.m), dim=1)
        return Update(Frames(a.contiguous(), b.T.contiguous()), float(own["scaling"]))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # (rows, ..., n) -> (rows, ..., m)
        """Return the base layer's output plus, for each row, the update of its adapter."""
        result: Tensor = self.base(x, *args, **kwargs)
        places, rank = self.rows.of(x), self.rows.rank
        if places is None:
            return result
        flat, flat_x = (value.reshape(len(x), -1, value.shape[-1]) for value in (result, x))
        scaling = self.stacks["scaling"].take(places)  # (rows, 1, 1)
        if rank:
            a, b = self.stacks["directions"].take(places, rank).split((self.n, self.m), dim=2)  # (rows, rank, n or m)
            hidden = torch.bmm(flat_x, a.to(x.dtype).mT) * scaling  # (rows, tokens, rank)
            flat = torch.baddbmm(flat, hidden.to(flat.dtype), b.to(flat.dtype))
        if self.frames is not None:
            hidden, cores = F.linear(flat_x, self.frames.a.to(x.dtype)), self.stacks["cores"].take(places).to(x.dtype)
            size = hidden.shape[2]
            hidden = hidden * cores if cores.shape[2] == size else torch.bmm(hidden, cores.view(-1, size, size).mT)
            hidden = (hidden * scaling).flatten(0, 1).to(flat.dtype)
            flat = torch.addmm(flat.flatten(0, 1), hidden, self.frames.b.to(flat.dtype).T).view(flat.shape)
        return flat.view(result.shape)
