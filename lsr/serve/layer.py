"""A linear layer with the adapters of a bank: each row of a batch is multiplied by its own adapter's parameters.

There is no loop over adapters and no copy of activations: parameters are gathered by row and applied in batched
products.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsr.init.passes import widths
from lsr.loading.base_models import by
from lsr.serve.slots import Rows, Stacked
from lsr.tuner.adapter import LsrAdapter


class Frames(nn.Module):
    """A (r, n) and B (m, r), which layers of one kind may share: a module, so that moving it keeps them shared."""

    a: Tensor
    b: Tensor

    def __init__(self, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.register_buffer("a", a)
        self.register_buffer("b", b)

    @classmethod
    def of(cls, adapter: LsrAdapter) -> "Frames":
        """Return a copy of the frames of an adapter."""
        return cls(*(side.detach().clone() for side in adapter.matrices(*adapter.factors())))


class BankLayer(Stacked):
    """A layer with adapters on the same frames, or with adapters of any form.

    With frames there is a stack `cores` of c R, (places, r, r), or of its diagonal, (places, r). Without, there are `a`
    with A, (places, r, n), and `b` with c B^T, (places, r, m), zero-padded to the largest rank.
    """

    def __init__(self, base_layer: Any, rows: Rows, stacks: Mapping[str, Tensor], frames: Frames | None) -> None:
        super().__init__(rows, stacks)
        self.base_layer = base_layer
        self.frames = frames
        self._check_shapes()
        self.to(base_layer.weight.device)

    def _check_shapes(self) -> None:
        n, m = widths(self.base_layer)
        shapes = {part: tuple(stack.shape[1:]) for part, stack in self.stacks().items()}
        if self.frames is None:
            rank = shapes.get("a", (0,))[0]
            fits = shapes == {"a": (rank, n), "b": (rank, m)}
        else:
            a, b = self.frames.a, self.frames.b
            fits = shapes in ({"cores": (len(a),)}, {"cores": (len(a), len(a))})
            fits = fits and (tuple(a.shape), tuple(b.shape)) == ((len(a), n), (m, len(a)))
        if not fits:
            raise ValueError(f"its tensors, {shapes}, do not fit a layer of {m} x {n}")

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # (rows, ..., n) -> (rows, ..., m)
        """Return the base layer's output plus, for each row, the update of its adapter."""
        result: Tensor = self.base_layer(x, *args, **kwargs)
        places = self.rows.of(x)
        if places is None:
            return result
        flat, flat_x = (value.reshape(len(x), -1, value.shape[-1]) for value in (result, x))
        if self.frames is None:
            added = add_by_factors(flat, flat_x, **self.stacks(), places=places)
        else:
            added = add_by_cores(flat, flat_x, self.frames.a, self.frames.b, **self.stacks(), places=places)
        return added.view(result.shape)

    def parts_of(self, adapter: LsrAdapter) -> dict[str, Tensor]:
        """Return the parts of an adapter to store, with its scaling included.

        Raises:
            ValueError: if its core has another shape than the others or lies between other frames.
        """
        if self.frames is None:
            a, b = (side.detach() for side in adapter.as_lora())
            return {"a": a, "b": adapter.scaling * b.T}
        needed = self.stacks()["cores"].shape[1:]
        if adapter.core.shape != needed:
            raise ValueError(f"its core is {by(adapter.core.shape)}, but the bank's cores are {by(needed)}")
        for own, held in zip(adapter.matrices(*adapter.factors()), (self.frames.a, self.frames.b), strict=True):
            if not own.to(held).equal(held):
                raise ValueError("its frames differ from the bank's; see collapse")
        return {"cores": adapter.scaling * adapter.core.detach()}


def new_layer(base_layer: nn.Module, rows: Rows, adapter: LsrAdapter, places: int, frames: Frames | None) -> BankLayer:
    """Return a layer for adapters like this one, with `places` slots, all zero."""
    if frames is not None:
        return BankLayer(base_layer, rows, {"cores": frames.a.new_zeros(places, *adapter.core.shape)}, frames)
    a, b = (side.detach() for side in adapter.as_lora())
    stacks = {"a": a.new_zeros(places, *a.shape), "b": b.new_zeros(places, *b.T.shape)}
    return BankLayer(base_layer, rows, stacks, None)


def add_by_cores(
    result: Tensor,  # (rows, tokens, m)
    x: Tensor,  # (rows, tokens, n)
    a: Tensor,  # (r, n)
    b: Tensor,  # (m, r)
    cores: Tensor,  # (places, r, r) or (places, r), with their scaling
    places: Tensor,  # (rows,)
) -> Tensor:  # (rows, tokens, m)
    """Return `result + B R_i A x`, with the core R_i of each row between the same A and B."""
    cores = cores.index_select(0, places).to(x.dtype)
    hidden = F.linear(x, a.to(x.dtype))  # (rows, tokens, r)
    hidden = torch.bmm(hidden, cores.mT) if cores.dim() == 3 else hidden * cores[:, None]
    hidden = hidden.flatten(0, 1).to(result.dtype)
    return torch.addmm(result.flatten(0, 1), hidden, b.to(result.dtype).T).view(result.shape)


def add_by_factors(
    result: Tensor,  # (rows, tokens, m)
    x: Tensor,  # (rows, tokens, n)
    a: Tensor,  # (places, r, n)
    b: Tensor,  # (places, r, m): B^T, with its scaling
    places: Tensor,  # (rows,)
) -> Tensor:  # (rows, tokens, m)
    """Return `result + B_i A_i x`, with the A and B of each row."""
    a, b = (stack.index_select(0, places) for stack in (a, b))
    hidden = torch.bmm(x, a.to(x.dtype).mT)  # (rows, tokens, r)
    return torch.baddbmm(result, hidden.to(result.dtype), b.to(result.dtype))
