"""Devices: the only code that detects an accelerator and moves models and batches to it."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def fastest() -> torch.device:
    """Return the accelerator, or the CPU if there is none."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None else found


def place(model: Model) -> Model:
    """Move a model to the fastest device, and return it."""
    return model.to(fastest())


@contextmanager
def placed(model: nn.Module) -> Iterator[None]:
    """Move a model to the fastest device, and back afterwards."""
    before = device_of(model)
    place(model)
    try:
        yield
    finally:
        model.to(before)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model that is on a single device."""
    return next(model.parameters()).device


def moved(batches: Iterable[Mapping[str, Tensor]], device: torch.device) -> Iterator[dict[str, Tensor]]:
    """Yield the batches on a device."""
    for batch in batches:
        yield {name: value.to(device) for name, value in batch.items()}
