"""Allocate a number of directions to the layers with the largest singular values."""

from collections import Counter
from collections.abc import Mapping
from math import hypot, inf

import torch

from lsr.algebra.spectrum import Matrix, leading_svd, norm_of, shape_of

MAX_DIRECTIONS = 64  # per layer


def allocate(
    statistics: Mapping[str, Matrix],  # gradients or updates, (m, n) by layer name
    total: int,
    seed: int = 0,
) -> dict[str, int]:
    """Count the `total` largest singular values of all layers per layer; layers with none are left out.

    Raises:
        ValueError: if the total is not positive or exceeds what the layers can hold, or all gradients are zero.
    """
    norm = hypot(*map(norm_of, statistics.values()))
    if not 0 < norm < inf:
        raise ValueError(f"cannot allocate directions: the norm of the gradients is {norm}")
    names = list[str]()  # the layer of each singular value
    values = []
    for name, matrix in statistics.items():
        count = min(MAX_DIRECTIONS, *shape_of(matrix))
        _, of_layer, _ = leading_svd(matrix, count, seed)
        names += [name] * count
        values.append(of_layer)
    if not 1 <= total <= len(names):
        limit = f"at most {MAX_DIRECTIONS} per layer"
        raise ValueError(f"the total number of directions must be in [1, {len(names)}], {limit}, got {total}")
    order = torch.cat(values).argsort(descending=True, stable=True)
    chosen = Counter(names[index] for index in order[:total].tolist())
    return {name: chosen[name] for name in statistics if name in chosen}
