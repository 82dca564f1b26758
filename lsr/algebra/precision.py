"""How much of an update rounding may lose, and the names of dtypes."""

import torch

TOLERATED_LOSS = 0.05  # relative error of the update from which on an export in a dtype is refused


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name without the module, for example bfloat16."""
    return str(dtype).removeprefix("torch.")
