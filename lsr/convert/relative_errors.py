"""The relative errors of converted adapters, in the Frobenius norm, by layer or tensor and in total."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import hypot

import torch
from torch import Tensor

from lsr.algebra.spectrum import Pair, norm_of
from lsr.loading.updates import Updates

Norms = tuple[float, float]  # norms of an error and of the original


@dataclass(frozen=True)
class RelativeErrors:
    """Relative errors, ||written - exact||_F / ||exact||_F."""

    layers: dict[str, float]
    total: float  # relative error of all layers as one long vector

    @property
    def worst(self) -> str:
        """The layer with the largest error."""
        return max(self.layers, key=self.layers.__getitem__)

    def __str__(self) -> str:
        """Format the total error and the largest one with its layer."""
        if not self.layers:
            return f"{self.total:.2g}"
        worst = self.worst
        error = self.layers[worst]
        return f"{self.total:.2g} in total, {error:.2g} at most, in {worst}"


def errors_of(written: Updates, exact: Updates) -> RelativeErrors:
    """Return the relative errors of updates by layer; a missing update counts as zero."""
    norms = dict[str, Norms]()
    for name, update in exact.items():
        product = update.product()
        length = norm_of(product)
        error = length
        if name in written:
            other = written[name].product()
            error = _distance(other, product)
        norms[name] = error, length
    return relative(norms)


def _distance(written: Pair, exact: Pair) -> float:  # the distance of the products B A, neither of which is formed
    if all(map(torch.equal, written, exact)):
        return 0.0  # rather than roundoff
    b, a = written
    exact_b, exact_a = exact
    left = torch.cat([b, -exact_b], dim=1)
    right = torch.cat([a, exact_a])
    return norm_of((left, right))


def norms_of(error: Tensor, exact: Tensor) -> Norms:
    """Return the norms of an error and of what it is an error of."""
    return float(error.norm()), float(exact.norm())


def relative(norms: Mapping[str, Norms]) -> RelativeErrors:
    """Divide the norms of errors by the norms of the originals, by name; 0 / 0 is 0."""
    layers = dict[str, float]()
    for name, (error, length) in norms.items():
        layers[name] = _share(error, length)
    total_error = hypot(*(error for error, _ in norms.values()))
    total_length = hypot(*(length for _, length in norms.values()))
    total = _share(total_error, total_length)
    return RelativeErrors(layers, total)


def _share(error: float, length: float) -> float:
    return error / length if length else 0.0
