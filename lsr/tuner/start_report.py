"""How much of their targets initial factors capture: of a layer's weight, or for frames, of weights and gradients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from statistics import fmean

import torch
from torch import Tensor

from lsr.algebra.frames import (
    bases_of,
    captured_energies,
    leading_frames,
    nested_energies,
    paired_energies,
    without_zeros,
)
from lsr.algebra.precision import Conditions, conditions_of
from lsr.algebra.separable import kron_sum, pad_columns, separation_errors
from lsr.algebra.shapes import Form
from lsr.algebra.spectrum import Matrix, leading_row_space
from lsr.init.frames import as_factors
from lsr.init.initialization import Start
from lsr.init.quality import Captured, captured_by_lora, captured_by_rows, captured_by_svd, captured_by_update
from lsr.init.random import random_factors
from lsr.tuner.adapter import Sizes
from lsr.tuner.layer import LsrLayer
from lsr.tuner.start import Started

MOST_RANKS_BY_SEARCH = 16  # with more than two factors, each point of the curve takes a separate search
MOST_RANKS_OF_FRAMES = 32
MOST_TERMS_OF_FRAMES = 64


@dataclass(frozen=True)
class StartReport:
    """The initialization of one layer. Overlaps, energies and errors are fractions."""

    separation_rank: int
    sizes: Sizes
    captured: Captured  # by row(A), of the target row space and of the weight
    captured_random: Captured
    captured_svd: Captured
    update_energy: float  # fraction of the weight in scaling * B A, if that is not zero
    update_energy_svd: float
    error: float | None  # relative error of the fit; None if nothing was fitted
    conditions: Conditions
    curve: tuple[float, ...]  # relative error of the nearest Kronecker sum at separation rank 1, 2, ...

    def columns(self) -> dict[str, float | int | None]:
        """Return everything except the curve, flattened, by name."""
        measured = {"": self.captured, "_random": self.captured_random, "_svd": self.captured_svd}
        losses = self.conditions.losses
        return {
            "separation_rank": self.separation_rank,
            "trained": self.sizes.trained,
            "stored": self.sizes.stored,
            "effective": self.sizes.effective,
            **{f"overlap{suffix}": captured.overlap for suffix, captured in measured.items()},
            **{f"energy{suffix}": captured.energy for suffix, captured in measured.items()},
            "update_energy": self.update_energy,
            "update_energy_svd": self.update_energy_svd,
            "error": self.error,
            "condition_a": self.conditions.a,
            "condition_b": self.conditions.b,
            "condition_update": self.conditions.update,
            "loss_bf16": losses["bfloat16"],
            "loss_fp16": losses["float16"],
            "loss_fp32": losses["float32"],
        }


def report_start(layer: LsrLayer, start: Start, seed: int, adapter_name: str = "default") -> StartReport:
    """Measure a freshly initialized layer.

    Raises:
        ValueError: if the weight has no row space.
    """
    adapter = layer.adapter(adapter_name)
    form, sizes = adapter.form, adapter.sizes()
    weight = layer.base_matrix().double()
    aim = start.rows if start.rows is not None else leading_row_space(weight, form.rank, seed)
    drawn, _ = random_factors(form, True, torch.Generator().manual_seed(seed))
    a = kron_sum(*start.a).double()[:, : form.in_features]
    b = kron_sum(*start.b).double()[: form.out_features]
    trained_in_a = start.a if sizes.trained == sizes.effective else start.a[:1]
    return StartReport(
        separation_rank=form.separation_rank,
        sizes=sizes,
        captured=captured_by_rows(weight, aim, a),
        captured_random=captured_by_rows(weight, aim, kron_sum(*drawn)[:, : form.in_features]),
        captured_svd=captured_by_svd(weight, form.rank, stored=sum(factor.numel() for factor in trained_in_a)),
        update_energy=captured_by_update(weight, adapter.scaling * (b @ a)),
        update_energy_svd=captured_by_lora(weight, sizes.stored),
        error=start.error,
        conditions=conditions_of(start.a, start.b),
        curve=separation_curve(aim, form.rank_shape, form.in_shape, form.max_separation_rank, seed),
    )


def separation_curve(
    rows: Tensor,  # (r, n)
    rank_shape: tuple[int, ...],
    in_shape: tuple[int, ...],
    most: int,
    seed: int,
) -> tuple[float, ...]:
    """Return the relative error of the nearest Kronecker sum to the rows at separation rank 1, 2, ..."""
    if len(rank_shape) > 2:
        most = min(most, MOST_RANKS_BY_SEARCH)
    padded = pad_columns(rows, prod(in_shape))
    return tuple(separation_errors(padded, rank_shape, in_shape, range(1, most + 1), seed))


@dataclass(frozen=True)
class FramesReport:
    """How much the frames of a layer, or of a kind whose layers share them, capture. Energies are fractions.

    An energy is the mean over the layers of ||B^T G A^T||_F^2 / ||G||_F^2, where G is the gradient, update or weight.
    """

    layers: int
    rank: int
    separation_rank: int
    sizes: Sizes  # of all the layers together
    energy: Mapping[str, float]  # of the gradient, update or weight, by name: captured by the actual frames
    own: Mapping[str, Sequence[float]]  # by separate frames of rank 1, 2, ... for each layer: its spectrum
    shared: Mapping[str, Sequence[float]]  # by the best frames that all layers share; empty for a single layer
    by_terms: Mapping[str, Mapping[int, float]]  # by frames of this rank, by number of Kronecker terms
    error: float | None  # of fitting Kronecker terms to dense frames

    def curves(self) -> dict[str, Sequence[float]]:
        """Return the curves over the rank, by label."""
        own = {f"{what}, own frames": curve for what, curve in self.own.items()}
        return own | {f"{what}, shared frames": curve for what, curve in self.shared.items()}

    def columns(self) -> dict[str, float | int | None]:
        """Return everything except the curves, flattened, by name."""
        return {
            "layers": self.layers,
            "rank": self.rank,
            "separation_rank": self.separation_rank,
            "trained": self.sizes.trained,
            "stored": self.sizes.stored,
            "effective": self.sizes.effective,
            **{f"energy_{what}": energy for what, energy in self.energy.items()},
            **{f"energy_{what}_own": curve[self.rank - 1] for what, curve in self.own.items()},
            "error": self.error,
        }


def report_frames(
    started: Started,
    gradients: Sequence[Mapping[str, Matrix]],
    seed: int,
    adapter_name: str = "default",
    read: str = "gradient",  # whether `gradients` holds gradients or updates
) -> FramesReport:
    """Measure the freshly initialized frames of a layer or kind.

    Raises:
        ValueError: if a weight or gradient is not finite.
    """
    layers = started.layers
    adapter = layers[0].adapter(adapter_name)
    form, is_diagonal = adapter.form, adapter.core.dim() == 1
    sizes = [layer.sizes(adapter_name) for layer in layers]
    most = max(form.rank, min(MOST_RANKS_OF_FRAMES, form.in_features, form.out_features))
    targets: dict[str, list[Matrix]] = {
        read: [found[layer.layer_name] for layer in layers for found in gradients],
        "weight": [layer.base_matrix() for layer in layers],
    }
    held = {what: matrices for what, matrices in targets.items() if matrices}
    frames, start = adapter.frames, started.start
    if frames.storage != "float32":  # what is rounded captures less
        start = Start(*frames.factors(), start.error)
    return FramesReport(
        layers=len(layers),
        rank=form.rank,
        separation_rank=form.separation_rank,
        sizes=Sizes(*(sum(getattr(size, name) for size in sizes) for name in ("trained", "stored", "effective"))),
        energy={what: _energy(matrices, start, form, is_diagonal) for what, matrices in held.items()},
        own={what: _mean_of([nested_energies([m], most, seed) for m in ms]) for what, ms in held.items()},
        shared={what: nested_energies(ms, most, seed) for what, ms in held.items() if len(layers) > 1},
        by_terms={what: _by_terms(matrices, form, seed) for what, matrices in held.items()},
        error=started.start.error,
    )


def _energy(matrices: Sequence[Matrix], start: Start, form: Form, is_diagonal: bool = False) -> float:
    right, left = kron_sum(*start.a)[:, : form.in_features], kron_sum(*start.b)[: form.out_features]
    if is_diagonal:
        return fmean(paired_energies(matrices, left.double(), right.double()))
    return fmean(captured_energies(matrices, *bases_of(right, left)))


def _by_terms(matrices: Sequence[Matrix], form: Form, seed: int) -> dict[int, float]:
    """Return the energy in the leading frames represented by 1, 2, 4, ... Kronecker terms; empty for dense frames."""
    if len(form.rank_shape) == 1:
        return {}
    counts = {*(2**power for power in range(form.max_separation_rank.bit_length())), form.separation_rank}
    forms = [replace(form, separation_rank=terms) for terms in sorted(counts) if terms <= MOST_TERMS_OF_FRAMES]
    alive = without_zeros(matrices)
    if not alive:
        return {one.separation_rank: 1.0 for one in forms}
    left, right = leading_frames(alive, form.rank, seed)
    return {one.separation_rank: _energy(matrices, as_factors(left, right, one, seed), one) for one in forms}


def _mean_of(curves: Sequence[Sequence[float]]) -> list[float]:
    return [fmean(values) for values in zip(*curves, strict=True)]
