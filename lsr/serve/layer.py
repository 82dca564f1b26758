"""A linear layer with the stacked parameters of many adapters: each row of a batch is multiplied by its own adapter's.

There is no loop over adapters and no copy of activations: parameters are gathered by row and applied in batched
products.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lsr.init.examples import widths
from lsr.loading.base_models import by
from lsr.serve.rows import Rows, grown
from lsr.tuner.adapter import LsrAdapter
from lsr.tuner.rows import add_by_cores, add_by_factors


class BankLayer(nn.Module):
    """A layer with the adapters of a bank; subclasses determine what is stacked along the slots."""

    stacks: tuple[str, ...]  # names of the buffers whose first axis is the slot

    def __init__(self, base_layer: nn.Module, rows: Rows) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._rows = (rows,)  # a tuple, because nn.Module must not register what all layers share

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # (rows, ..., n) -> (rows, ..., m)
        """Return the base layer's output plus, for each row, the update of its adapter."""
        result: Tensor = self.base_layer(x, *args, **kwargs)
        places = self._rows[0].of(x)
        if places is None:
            return result
        flat = result.reshape(len(x), -1, result.shape[-1])
        return self._added(flat, x.reshape(len(x), -1, x.shape[-1]), places).view(result.shape)

    def _added(
        self,
        result: Tensor,  # (rows, tokens, m)
        x: Tensor,  # (rows, tokens, n)
        places: Tensor,  # (rows,)
    ) -> Tensor:  # (rows, tokens, m)
        raise NotImplementedError

    def parts(self, adapter: LsrAdapter) -> dict[str, Tensor]:
        """Return the parts of an adapter to store, by stack, with the scaling included.

        Raises:
            ValueError: if the adapter does not have the form of this layer.
        """
        raise NotImplementedError

    def put(self, place: int, parts: dict[str, Tensor]) -> None:
        """Put the parts of an adapter into its slot, or zeros if there are none. Stacks grow if they are too small."""
        for name in self.stacks:
            stack = getattr(self, name)
            if name in parts:
                stack = grown(stack, (place + 1, *parts[name].shape))
                setattr(self, name, stack)
            with torch.no_grad():
                stack[place].zero_()
                if name in parts:
                    stack[place][tuple(map(slice, parts[name].shape))].copy_(parts[name])

    def stacked(self) -> list[Tensor]:
        """Return the stacks."""
        return [getattr(self, name) for name in self.stacks]

    def make_room(self, places: int) -> None:
        """Grow the stacks to at least `places` slots."""
        for name in self.stacks:
            stack: Tensor = getattr(self, name)
            setattr(self, name, grown(stack, (places, *stack.shape[1:])))


class Frames(nn.Module):
    """A (r, n) and B (m, r), which layers of one kind may share: a module, so that moving it keeps them shared."""

    a: Tensor
    b: Tensor

    def __init__(self, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.register_buffer("a", a)
        self.register_buffer("b", b)


class CoreLayer(BankLayer):
    """Adapters on the same frames: `cores` holds c R, (places, r, r), or its diagonal, (places, r)."""

    stacks = ("cores",)
    cores: Tensor

    def __init__(self, base_layer: nn.Module, rows: Rows, frames: Frames, cores: Tensor) -> None:
        super().__init__(base_layer, rows)
        self.frames = frames
        self.register_buffer("cores", cores)

    def _added(self, result: Tensor, x: Tensor, places: Tensor) -> Tensor:
        return add_by_cores(result, x, self.frames.a, self.frames.b, self.cores, places)

    def parts(self, adapter: LsrAdapter) -> dict[str, Tensor]:
        """Return the scaled core.

        Raises:
            ValueError: if the core has another shape or lies between other frames.
        """
        if adapter.core.shape != self.cores.shape[1:]:
            found, needed = (by(shape) for shape in (adapter.core.shape, self.cores.shape[1:]))
            raise ValueError(f"its core is {found}, but the bank's cores are {needed}")
        for own, held in zip(adapter.matrices(*adapter.factors()), (self.frames.a, self.frames.b), strict=True):
            if not torch.equal(own.to(held), held):
                raise ValueError("its frames differ from the bank's; see collapse")
        return {"cores": adapter.scaling * adapter.core.detach()}


class FactorLayer(BankLayer):
    """Adapters of any form: `a` holds A, (places, r, n), and `b` c B^T, (places, r, m), zero-padded to the rank."""

    stacks = ("a", "b")

    def __init__(self, base_layer: nn.Module, rows: Rows, a: Tensor, b: Tensor) -> None:
        super().__init__(base_layer, rows)
        for name, value in (("a", a), ("b", b)):
            self.register_buffer(name, value)

    a: Tensor
    b: Tensor

    def _added(self, result: Tensor, x: Tensor, places: Tensor) -> Tensor:
        return add_by_factors(result, x, self.a, self.b, places)

    def parts(self, adapter: LsrAdapter) -> dict[str, Tensor]:
        """Return A and the transpose of c B for the whole update of the pretrained weight.

        Raises:
            ValueError: if the adapter is for a layer of other widths.
        """
        a, b = (side.detach() for side in adapter.as_lora())
        widths = self.b.shape[2], self.a.shape[2]
        if (len(b), a.shape[1]) != widths:
            raise ValueError(f"it is for a layer of {len(b)} x {a.shape[1]}, but this one is {widths[0]} x {widths[1]}")
        return {"a": a, "b": adapter.scaling * b.T}


def core_layer(base_layer: nn.Module, rows: Rows, adapter: LsrAdapter, frames: Frames, places: int) -> CoreLayer:
    """Return a layer for cores of the same form as an adapter's, with `places` slots, all zero."""
    return CoreLayer(base_layer, rows, frames, frames.a.new_zeros(places, *adapter.core.shape))


def frames_of(adapter: LsrAdapter) -> Frames:
    """Return a copy of the frames of an adapter."""
    a, b = adapter.matrices(*adapter.factors())
    return Frames(a.detach().clone(), b.detach().clone())


def factor_layer(base_layer: nn.Module, rows: Rows, adapter: LsrAdapter, places: int) -> FactorLayer:
    """Return a layer for adapters of any form, with `places` slots, all zero."""
    a, b = (side.detach() for side in adapter.as_lora())
    return FactorLayer(base_layer, rows, a.new_zeros(places, *a.shape), b.new_zeros(places, *b.T.shape))


def contents(layer: BankLayer, order: Tensor) -> dict[str, Tensor]:  # order: of the slots
    """Return the tensors of a layer to save: its stacks in the given order and its frames, which others may share."""
    frames = (
        {f"frames_{name}": value for name, value in layer.frames.named_buffers()}
        if isinstance(layer, CoreLayer)
        else {}
    )
    return {**frames, **{name: getattr(layer, name)[order] for name in layer.stacks}}


def stored_layer(
    base_layer: nn.Module, rows: Rows, tensors: Mapping[str, Tensor], shared: dict[tuple[int, int], Frames]
) -> BankLayer:
    """Return a layer from a file's tensors; `shared` holds the frames that earlier layers use, by memory address.

    Raises:
        ValueError: if the tensors do not fit the widths of the layer.
    """
    n, m = widths(base_layer)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    if shapes.keys() == {"frames_a", "frames_b", "cores"}:
        a, b, cores = (tensors[name] for name in ("frames_a", "frames_b", "cores"))
        rank = len(a)
        if (a.shape, b.shape) == ((rank, n), (m, rank)) and cores.shape[1:] in ((rank,), (rank, rank)):
            return CoreLayer(base_layer, rows, shared.setdefault((a.data_ptr(), b.data_ptr()), Frames(a, b)), cores)
    elif shapes.keys() == {"a", "b"}:
        a, b = tensors["a"], tensors["b"]
        if a.dim() == b.dim() == 3 and (a.shape[1:], b.shape[1:]) == ((a.shape[1], n), (a.shape[1], m)):
            return FactorLayer(base_layer, rows, a, b)
    raise ValueError(f"its tensors, {shapes}, do not fit a layer of {m} x {n}")
