"""What a layer's start holds of its weight, beside a random factor of its form and an SVD of as many parameters."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from lsr.algebra.precision import Conditions, conditions_of
from lsr.algebra.separable import kron_sum, pad_columns, separation_errors
from lsr.algebra.spectrum import leading_row_space
from lsr.init.initialization import Start
from lsr.init.quality import Captured, captured_by_lora, captured_by_rows, captured_by_svd, captured_by_update
from lsr.init.random import random_factors
from lsr.tuner.adapter import Sizes
from lsr.tuner.layer import LsrLayer

MOST_RANKS_BY_SEARCH = 16  # with more than two factors each error is a search of its own


@dataclass(frozen=True)
class StartReport:
    """What one layer starts with. Overlaps, energies and errors are fractions."""

    separation_rank: int
    sizes: Sizes
    captured: Captured  # by row(A), of the row space aimed at and of the weight
    captured_random: Captured
    captured_svd: Captured
    update_energy: float  # of the weight in scaling * B A, where that is not zero
    update_energy_svd: float
    error: float | None  # of the fit, relative to its target; None where nothing was fitted
    conditions: Conditions
    curve: tuple[float, ...]  # relative error of the nearest Kronecker sum at separation rank 1, 2, ...

    def columns(self) -> dict[str, float | int | None]:
        """Return all but the curve by name, flat."""
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
    """Measure a layer that has just been initialized.

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
