"""Devices: the only code that detects an accelerator and moves models to it."""

from typing import TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def fastest() -> torch.device:
    """Return the accelerator, or the CPU if there is none."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if found is None else found


def place(model: Model, where: torch.device | None = None) -> Model:
    """Move a model to a device, by default the fastest, and return it."""
    return model.to(where or fastest())


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model that is on a single device."""
    return next(model.parameters()).device
