"""The hash of a base weight from which an initial update is subtracted, as an adapter's file has it."""

import hashlib

import torch
from torch import Tensor


def weight_hash(weight: Tensor) -> str:
    """Return the SHA-256 of a pretrained weight's bytes, as the base layer stores them."""
    return hashlib.sha256(weight.cpu().contiguous().view(torch.uint8).numpy().data).hexdigest()


def check_weight(weight: Tensor, expected: str, layer_name: str) -> None:
    """Check a pretrained weight against the hash in an adapter's file.

    Raises:
        ValueError: if the weight differs; names the layer.
    """
    if weight.is_meta:
        raise ValueError(f"layer {layer_name!r}: cannot subtract an initial update from a base weight without values")
    if weight_hash(weight) != expected:
        raise ValueError(
            f"layer {layer_name!r}: this is not the base model that the adapter was initialized from: the weight "
            f"{tuple(weight.shape)} in {weight.dtype} has another hash"
        )
