"""How far what is written is from the original, by layer and overall."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lsr.algebra.spectrum import distance_of_pairs, norm_of_pair

Pair = tuple[Tensor, Tensor]  # (m, k), (k, n): an update is their product


@dataclass(frozen=True)
class Errors:
    """Relative errors of what is written, ||written - exact||_F / ||exact||_F."""

    layers: dict[str, float]
    total: float  # of all layers as one long vector

    @property
    def worst(self) -> str:
        """The layer with the largest error."""
        return max(self.layers, key=lambda name: self.layers[name])

    def __str__(self) -> str:
        """Return the error in total and the largest."""
        return f"{self.total:.2g} in total, {self.layers[self.worst]:.2g} at most, in {self.worst}"


def of_updates(written: Mapping[str, Pair], exact: Mapping[str, Pair]) -> Errors:
    """Return the errors of updates by layer; one that is not written is written as zero."""
    lengths = {name: norm_of_pair(*pair) for name, pair in exact.items()}
    absolute = {n: distance_of_pairs(written[n], pair) if n in written else lengths[n] for n, pair in exact.items()}
    return relative(absolute, lengths)


def relative(absolute: Mapping[str, float], lengths: Mapping[str, float]) -> Errors:
    """Divide errors by the norms of what was to be written; a zero that stays zero has error 0."""
    layers = {name: absolute[name] / lengths[name] if lengths[name] else 0.0 for name in absolute}
    total, length = (float(torch.tensor(list(v.values()), dtype=torch.float64).norm()) for v in (absolute, lengths))
    return Errors(layers, total / length if length else 0.0)
