"""How much an adapter's start keeps: of gradients or updates over examples, or else of the base weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from lsr.algebra.frames import captured_energies, energies_in_rows, leading_energies, paired_energies
from lsr.algebra.spectrum import Matrix
from lsr.tuner.start import Started


@dataclass(frozen=True)
class StartReport:
    """The start of a layer, or of a kind whose layers share frames. Energies are fractions, means over the layers.

    An energy is `||B^T G A^T||_F^2 / ||G||_F^2` between frames, where G is a gradient, update or weight. Without a core
    B begins at zero, so it is `||G P||_F^2 / ||G||_F^2`, where P projects onto the rows of A.
    """

    layers: int
    rank: int
    captured: str  # gradient, update or weight
    energy: float
    energy_best: float  # in the best frames of equal rank that each layer could have by itself


def report_start(
    started: Started,
    statistics: Mapping[str, Matrix],  # gradients or updates by layer; none: the start is that of the weights
    seed: int,
    read: str = "gradient",  # what the statistics are
    adapter_name: str = "default",
) -> StartReport:
    """Measure a freshly initialized layer or kind.

    Raises:
        ValueError: if a weight or gradient is not finite.
    """
    layers = started.layers
    adapter = layers[0].adapter(adapter_name)
    form = adapter.form
    matrices: Sequence[Matrix] = (
        [statistics[layer.layer_name] for layer in layers]
        if statistics
        else [layer.base_matrix().detach().cpu().double() for layer in layers]
    )
    a, b = (side.detach().cpu().double() for side in adapter.matrices(*adapter.factors()))
    if adapter.has_core and adapter.core.dim() == 1:
        energies = paired_energies(matrices, b, a)
    else:
        rows, columns = torch.linalg.qr(a.T).Q.T, torch.linalg.qr(b).Q
        energies = captured_energies(matrices, columns, rows) if adapter.has_core else energies_in_rows(matrices, rows)
    return StartReport(
        layers=len(layers),
        rank=form.rank,
        captured=read if statistics else "weight",
        energy=fmean(energies),
        energy_best=fmean(leading_energies(matrices, form.rank, seed)),
    )
