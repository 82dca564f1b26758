"""Check that a section's method can adapt a layer of this size. Messages name the key; the caller appends the layer."""

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def divides(*fields: str) -> Callable[[Any, nn.Module], None]:
    """Return a function for `Method.check` that requires fields of the section to divide both widths of a layer."""

    def check(section: Any, layer: nn.Module) -> None:
        for field in fields:
            value = getattr(section, field)
            for width in _widths(layer) if value != "auto" else ():
                if width % value:
                    raise ValueError(f"{field}: {value} does not divide {width}, a width of")

    return check


def lora(section: Any, layer: nn.Module) -> None:
    """Check that LoRA's rank is at most a layer's: PEFT allows any, however much memory that takes.

    Raises:
        ValueError: if the rank is too high, or the initialization expects a weight that is not transposed.
    """
    if section.r > min(_widths(layer)):
        raise ValueError(f"r: {section.r} is above {min(_widths(layer))}, the smaller side of")
    if section.init == "olora" and isinstance(layer, Conv1D):
        raise ValueError("init: olora is for linear layers, and Conv1D is")


def spectrum(section: Any, layer: nn.Module) -> None:
    """Check that a layer's update has at least as many frequencies as FourierFT trains.

    Raises:
        ValueError: if it has fewer.
    """
    rows, columns = _widths(layer)
    if section.n_frequency > rows * columns:
        raise ValueError(f"n_frequency: {section.n_frequency} is above {rows * columns}, the entries of")


def directions(section: Any, layer: nn.Module) -> None:
    """Check that a weight has at least as many singular vectors as TinyLoRA uses.

    Raises:
        ValueError: if it has fewer.
    """
    if section.r > min(_widths(layer)):
        raise ValueError(f"r: {section.r} is above {min(_widths(layer))}, the singular vectors of")


def _widths(layer: nn.Module) -> tuple[int, int]:
    """Return the two widths of a linear layer or an embedding."""
    rows, columns = cast("Tensor", layer.weight).shape
    return rows, columns
