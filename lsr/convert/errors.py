"""How far a written adapter is from its original, by layer and overall."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lsr.algebra.spectrum import distance_of_pairs, norm_of
from lsr.loading.updates import Update


@dataclass(frozen=True)
class Errors:
    """Relative errors, ||written - exact||_F / ||exact||_F."""

    layers: dict[str, float]
    total: float  # of all layers as one long vector

    @property
    def worst(self) -> str:
        """The layer with the largest error."""
        return max(self.layers, key=lambda name: self.layers[name])

    def __str__(self) -> str:
        """Return the total error, and the largest with its layer."""
        return f"{self.total:.2g} in total, {self.layers[self.worst]:.2g} at most, in {self.worst}"


def of_updates(written: Mapping[str, Update], exact: Mapping[str, Update]) -> Errors:
    """Return the errors of updates by layer; a missing update counts as zero."""
    products = {name: update.product() for name, update in exact.items()}
    lengths = {name: norm_of(product) for name, product in products.items()}
    absolute = {
        name: distance_of_pairs(written[name].product(), product) if name in written else lengths[name]
        for name, product in products.items()
    }
    return relative(absolute, lengths)


def relative(absolute: Mapping[str, float], lengths: Mapping[str, float]) -> Errors:
    """Divide errors by the norms of the originals; a zero that stays zero has error 0."""
    layers = {name: absolute[name] / lengths[name] if lengths[name] else 0.0 for name in absolute}
    total, length = (float(torch.tensor(list(v.values()), dtype=torch.float64).norm()) for v in (absolute, lengths))
    return Errors(layers, total / length if length else 0.0)
