"""Allocate a budget of directions to the layers with the largest singular values."""

from collections import Counter
from collections.abc import Mapping
from math import hypot, inf

import torch

from lsr.algebra.spectrum import Matrix, leading_svd, norm_of, shape_of

MOST = 64  # directions per layer, of a budget


def allocate(
    statistics: Mapping[str, Matrix],  # gradients or updates, (m, n) by layer name
    budget: int,
    seed: int = 0,
) -> dict[str, int]:
    """Count the `budget` largest singular values of all layers per layer; layers with none are left out.

    Raises:
        ValueError: if the budget is not positive or exceeds what the layers can hold, or all gradients are zero.
    """
    norm = hypot(*map(norm_of, statistics.values()))
    if not 0 < norm < inf:
        raise ValueError(f"cannot allocate directions: the norm of the gradients is {norm}")
    names = list[str]()  # the layer of each singular value
    values = []
    for name, matrix in statistics.items():
        count = min(MOST, *shape_of(matrix))
        _, of_layer, _ = leading_svd(matrix, count, seed)
        names += [name] * count
        values.append(of_layer)
    if not 1 <= budget <= len(names):
        raise ValueError(f"the budget must be in [1, {len(names)}], at most {MOST} directions per layer, got {budget}")
    order = torch.cat(values).argsort(descending=True, stable=True)
    chosen = Counter(names[index] for index in order[:budget].tolist())
    return {name: chosen[name] for name in statistics if name in chosen}
