"""Distribute a budget of directions over the layers: to those with the largest singular values of the gradient."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import hypot

import torch
from torch import Tensor

from lsr.algebra.spectrum import Matrix, leading_svd, norm_of, shape_of

MOST = 64  # directions per layer


def allocate(
    gradients: Sequence[Mapping[str, Matrix]],  # (m, n) by layer name, one mapping per data set
    budget: int,
    seed: int = 0,
) -> dict[str, int]:
    """Return each layer's share of the `budget` largest singular values over all layers; layers with none are left out.

    The gradients of a data set are scaled to a joint norm of 1. Gradients of several data sets are concatenated.

    Raises:
        ValueError: if the budget is not positive or exceeds what the layers can hold, or all gradients are zero.
    """
    norms = _norms(gradients)
    values = {name: _values([one[name] for one in gradients], norms, seed) for name in gradients[0]}
    most = sum(map(len, values.values()))
    if not 1 <= budget <= most:
        raise ValueError(f"the budget must be in [1, {most}], at most {MOST} directions per layer, got {budget}")
    names = [name for name, of_layer in values.items() for _ in of_layer]
    order = torch.cat(list(values.values())).argsort(descending=True, stable=True)[:budget]
    chosen = Counter(names[index] for index in order.tolist())
    return {name: chosen[name] for name in values if name in chosen}


def _norms(gradients: Sequence[Mapping[str, Matrix]]) -> list[float]:
    norms = [hypot(*map(norm_of, one.values())) for one in gradients]
    if not all(0 < norm < float("inf") for norm in norms):
        raise ValueError(f"cannot allocate directions: the norm of the gradients is {min(norms)}")
    return norms


def _values(matrices: Sequence[Matrix], norms: Sequence[float], seed: int) -> Tensor:
    count = min(MOST, *shape_of(matrices[0]))
    if len(matrices) == 1:
        return leading_svd(matrices[0], count, seed)[1] / norms[0]
    parts = []
    for matrix, norm in zip(matrices, norms, strict=True):
        left, values, _ = leading_svd(matrix, count, seed)
        parts.append(left * (values / norm))
    return torch.linalg.svdvals(torch.cat(parts, dim=1))[:count]
