"""How much an adapter's initial frames capture: of gradients or updates over examples, or else of the base weights."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from lsr.algebra.frames import bases_of, captured_energies, nested_energies, paired_energies
from lsr.algebra.spectrum import Matrix, leading_row_space
from lsr.tuner.start import Started


class StartReport(NamedTuple):
    """The start of a layer, or of a kind whose layers share frames. Energies are fractions, means over the layers.

    An energy is `||B^T G A^T||_F^2 / ||G||_F^2` between frames, where G is a gradient, update or weight. Without a core
    B begins at zero or fits the weight, so it is `||W P||_F^2 / ||W||_F^2`, where P projects onto the rows of A.
    """

    layers: int
    rank: int
    captured: str  # gradient, update or weight
    energy: float
    energy_best: float  # in the best frames of equal rank that each layer could have by itself
    relative_error: float | None  # of the fit; None if nothing was fitted


def report_start(
    started: Started,
    gradients: Sequence[Mapping[str, Matrix]],
    seed: int,
    adapter_name: str = "default",
    read: str = "gradient",  # whether `gradients` holds gradients or updates
) -> StartReport:
    """Measure a freshly initialized layer or kind.

    Raises:
        ValueError: if a weight or gradient is not finite.
    """
    adapter = started.layers[0].adapter(adapter_name)
    rank = adapter.form.rank
    a, b = (side.detach().double() for side in adapter.matrices(*adapter.factors()))
    weights = [layer.base_matrix().detach().double() for layer in started.layers]
    found = [found[layer.layer_name] for layer in started.layers for found in gradients]
    captured, matrices = (read, found) if found else ("weight", weights)
    if not adapter.has_core:
        captured, energies = "weight", [_energy_of_rows(weight, a) for weight in weights]
        best = [_energy_of_rows(weight, leading_row_space(weight, rank, seed)) for weight in weights]
    else:
        is_diagonal = adapter.core.dim() == 1
        energies = paired_energies(matrices, b, a) if is_diagonal else captured_energies(matrices, *bases_of(a, b))
        best = [nested_energies([matrix], rank, seed)[-1] for matrix in matrices]
    return StartReport(len(weights), rank, captured, fmean(energies), fmean(best), started.start.error)


def _energy_of_rows(
    weight: Tensor,  # (m, n)
    rows: Tensor,  # (r, n)
) -> float:
    basis = torch.linalg.qr(rows.double().T).Q
    return float((weight @ basis).square().sum() / weight.square().sum())
