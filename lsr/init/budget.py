"""A budget of directions, which go to the layers where they are largest."""

from collections import Counter
from collections.abc import Mapping
from math import hypot

import torch

from lsr.algebra.spectrum import Matrix, leading_svd, norm_of, shape_of

MOST = 64  # directions per layer, of a budget


def allocate(
    statistics: Mapping[str, Matrix],  # gradients or updates, (m, n) by layer name
    budget: int,
    seed: int = 0,
) -> dict[str, int]:
    """Return each layer's share of the `budget` largest singular values over all layers; layers with none are left out.

    Raises:
        ValueError: if the budget is not positive or exceeds what the layers can hold, or all gradients are zero.
    """
    norm = hypot(*map(norm_of, statistics.values()))
    if not 0 < norm < float("inf"):
        raise ValueError(f"cannot allocate directions: the norm of the gradients is {norm}")
    values = {name: leading_svd(matrix, min(MOST, *shape_of(matrix)), seed)[1] for name, matrix in statistics.items()}
    most = sum(map(len, values.values()))
    if not 1 <= budget <= most:
        raise ValueError(f"the budget must be in [1, {most}], at most {MOST} directions per layer, got {budget}")
    names = [name for name, of_layer in values.items() for _ in of_layer]
    order = torch.cat(list(values.values())).argsort(descending=True, stable=True)[:budget]
    chosen = Counter(names[index] for index in order.tolist())
    return {name: chosen[name] for name in values if name in chosen}
