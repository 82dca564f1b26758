"""What an adapter's file says of the base weights that it was made for: hashes, and sketches that survive rounding."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

PROJECTIONS = 16
ALIKE = 0.9  # cosine of two sketches: above 0.99 for a weight in 8 bits, below 0.9 for one in a million unrelated ones


def weight_sketch(
    weight: Tensor,  # (m, n)
) -> tuple[float, ...]:  # four digits each; empty for a weight without values
    """Return PROJECTIONS numbers u^T W v / ||W||_F with fixed random signs u and v.

    A weight that is rounded or fine-tuned a little keeps them; those of unrelated weights are independent.
    """
    if weight.is_meta:
        return ()
    matrix = weight.detach().to("cpu", torch.float32)
    draws = torch.Generator().manual_seed(0)
    rows, columns = (
        2.0 * torch.randint(2, (PROJECTIONS, side), generator=draws, device="cpu") - 1 for side in matrix.shape
    )
    values = ((rows @ matrix) * columns).sum(dim=1) / torch.linalg.matrix_norm(matrix)
    return tuple(round(value, 4) for value in values.tolist()) if torch.isfinite(values).all() else ()


def are_alike(one: Sequence[float], other: Sequence[float]) -> bool:
    """Return whether two sketches are of the same weight, as far as one can tell: an empty one may be of any."""
    if not one or not other:
        return True
    first, second = (torch.tensor(sketch, dtype=torch.float64) for sketch in (one, other))
    return bool(torch.cosine_similarity(first, second, dim=0) > ALIKE)


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
