"""Checkpoints of tiny models of each architecture, whose answers depend on every token, in float32 or bfloat16."""

import torch

from tests import architectures
from tests.kit import edit

ARCHITECTURES = tuple(architectures.PADDED)
LOUDER = 8  # times the usual size of fresh weights: with that, attention is uniform and all texts look alike
TARGETS = {"xlnet": ["layer_1"]}  # layers to adapt where no table has the usual ones


def save(folder, architecture, dtype=torch.float32, padding_side="right"):
    """Save a checkpoint and its tokenizer, and return the folder."""
    architectures.save_padded(folder, architecture)
    edit(folder / "model.safetensors", lambda tensors: {name: louder(value, dtype) for name, value in tensors.items()})
    edit(folder / "config.json", dtype=str(dtype).removeprefix("torch."))
    edit(folder / "tokenizer_config.json", padding_side=padding_side)
    return folder


def louder(tensor, dtype):
    return (tensor * LOUDER if tensor.dim() == 2 else tensor).to(dtype)
