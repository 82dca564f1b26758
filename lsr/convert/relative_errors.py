"""The relative errors of converted adapters, in the Frobenius norm, by layer or tensor and in total."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import hypot

import torch

from lsr.algebra.spectrum import Pair, norm_of
from lsr.loading.updates import Updates


@dataclass(frozen=True)
class RelativeErrors:
    """Relative errors, ||written - exact||_F / ||exact||_F."""

    layers: dict[str, float]
    total: float  # relative error of all layers as one long vector

    @property
    def worst(self) -> str:
        """The layer with the largest error."""
        return max(self.layers, key=lambda name: self.layers[name])

    def __str__(self) -> str:
        """Format the total error and the largest one with its layer."""
        worst = self.worst
        return f"{self.total:.2g} in total, {self.layers[worst]:.2g} at most, in {worst}"


def errors_of(written: Updates, exact: Updates) -> RelativeErrors:
    """Return the relative errors of updates by layer; a missing update counts as zero."""
    sizes = {}
    for name, update in exact.items():
        product = update.product()
        length = norm_of(product)
        error = _distance(written[name].product(), product) if name in written else length
        sizes[name] = error, length
    return relative(sizes)


def _distance(written: Pair, exact: Pair) -> float:  # the distance of the products B A, neither of which is formed
    if all(map(torch.equal, written, exact)):
        return 0.0  # rather than roundoff
    left = torch.cat([written[0], -exact[0]], dim=1)
    right = torch.cat([written[1], exact[1]])
    return norm_of((left, right))


def relative(sizes: Mapping[str, tuple[float, float]]) -> RelativeErrors:
    """Divide the norms of errors by the norms of the originals, by name; 0 / 0 is 0."""
    layers = {name: _share(error, length) for name, (error, length) in sizes.items()}
    errors, lengths = zip(*sizes.values(), strict=True)
    return RelativeErrors(layers, _share(hypot(*errors), hypot(*lengths)))


def _share(error: float, length: float) -> float:
    return error / length if length else 0.0
