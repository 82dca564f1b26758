"""The only code that detects an accelerator."""

import torch


def fastest() -> torch.device:
    """Return the accelerator, or the CPU if there is none."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")
