"""Shared by compress and prune: layers with fewer terms are written as an adapter, with a certificate for each layer.

A certificate is the exact relative distance between the update as written and the original one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from lsr.algebra.shapes import Form
from lsr.convert.files import PREFIX, InputError, factor_key, write_adapter, writing
from lsr.convert.refit import Reduced, Update, fewest_terms, fit_update, total_error
from lsr.tuner.config import LsrConfig


@dataclass(frozen=True)
class LayerCertificate:
    """The result for one layer."""

    separation_rank: int
    parameters_before: int
    parameters: int
    error: float  # ||ΔW' - ΔW||_F / ||ΔW||_F


@dataclass(frozen=True)
class Certificate:
    """The result for an adapter: `error` is that of all layers as one long vector."""

    layers: dict[str, LayerCertificate]
    error: float


@dataclass(frozen=True)
class Part:
    """A layer to be written: its factors, their shapes, and the scaling of their product."""

    form: Form
    reduced: Reduced
    scaling: float
    parameters_before: int


def reduce_layer(
    name: str,
    update: Update,
    form: Form,
    separation_rank: int | None,
    error: float | None,
    sides: tuple[Tensor, Tensor] | None = None,  # (m1 * ... * mD, r), (r, n1 * ... * nD), known to be separable
    whole: Reduced | None = None,  # the adapter's own factors, without error
) -> Reduced:
    """Return the fit with `separation_rank` terms, or with the fewest that reach the error.

    Raises:
        InputError: if the layer cannot be fitted, or the error is out of reach; names the layer.
    """
    limit = form.max_separation_rank if separation_rank is None else min(separation_rank, form.max_separation_rank)

    def fit(terms: int) -> Reduced:
        if whole is not None and terms >= whole.separation_rank:
            return whole
        try:
            return fit_update(update, replace(form, separation_rank=terms), sides)
        except ValueError as mistake:
            raise InputError(f"layer {name!r}: {mistake}") from None

    if error is None:
        return fit(limit)
    found = fewest_terms(fit, error, limit)
    if found.error > error:
        raise InputError(
            f"layer {name!r}: the error {error:g} is out of reach: rank {list(form.rank_shape)} with {limit} terms "
            f"leaves {found.error:.3g}"
        )
    return found


def write_parts(
    output: Path,
    config: LsrConfig,
    parts: Mapping[str, Part],
    others: Mapping[str, Tensor],  # heads and biases, by their names in the file
) -> Certificate:
    """Write an adapter folder: the configuration with the shapes of the parts, their factors and all other tensors.

    Raises:
        InputError: if the folder cannot be written.
    """
    tensors = dict(others)
    for name, part in parts.items():
        for side, factors in (("A", part.reduced.a), ("B", part.reduced.b)):
            tensors |= {factor_key(name, side, i): factor for i, factor in enumerate(factors, start=1)}
    with writing(output) as new:
        write_adapter(new, _with_shapes(config, parts).to_dict(), tensors)
    layers = {name: _certificate(name, part, tensors) for name, part in parts.items()}
    scaled = [replace(part.reduced, norm=abs(part.scaling) * part.reduced.norm) for part in parts.values()]
    return Certificate(layers, total_error(scaled))


def _certificate(name: str, part: Part, tensors: Mapping[str, Tensor]) -> LayerCertificate:
    parameters = sum(tensor.numel() for key, tensor in tensors.items() if key.startswith(f"{PREFIX}{name}.lsr_"))
    return LayerCertificate(part.reduced.separation_rank, part.parameters_before, parameters, part.reduced.error)


def _with_shapes(config: LsrConfig, parts: Mapping[str, Part]) -> LsrConfig:
    forms = {name: replace(part.form, separation_rank=part.reduced.separation_rank) for name, part in parts.items()}
    shaped = config.with_layers(forms, {name: part.scaling for name, part in parts.items()})
    return replace(shaped, inference_mode=True)


def check_values(separation_rank: int | None, error: float | None, rank_shape: tuple[int, ...] | None) -> None:
    """Check the values of the options.

    Raises:
        InputError: names the option and what is allowed.
    """
    if separation_rank is None and error is None:
        raise InputError("--separation-rank or --error is needed, or both")
    if separation_rank is not None and separation_rank < 1:
        raise InputError(f"--separation-rank must be >= 1, got {separation_rank}")
    if error is not None and not 0 < error < 1:
        raise InputError(f"--error must be a number in (0, 1), got {error:g}")
    if rank_shape is not None and (len(rank_shape) < 2 or min(rank_shape) < 1):
        raise InputError(f"--rank-shape must hold two or more ranks >= 1, got {' '.join(map(str, rank_shape))}")
