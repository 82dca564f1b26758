"""A trained LSR adapter written with fewer Kronecker terms, with a certificate of what that leaves out."""

import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lsr.algebra.separable import kron_sum
from lsr.convert.certificate import Certificate, Part, check_values, reduce_layer, write_parts
from lsr.convert.files import InputError, check_output, read_tensors
from lsr.convert.loading import ADAPTER, load_adapter
from lsr.convert.refit import Reduced, Update
from lsr.tuner.config import LsrConfig
from lsr.tuner.layer import LsrLayer
from lsr.tuner.model import adapted_layers


def prune_adapter(
    folder: str | Path,
    output: str | Path,
    *,
    separation_rank: int | None = None,
    error: float | None = None,
    base: str | None = None,
    force: bool = False,
) -> Certificate:
    """Write a trained LSR adapter with fewer terms: the trailing ones are dropped and the rest is fitted again.

    With `error` each layer gets the fewest terms that reach it, at most `separation_rank` if that is given too. A start
    that was subtracted becomes part of the factors, which then have twice the rank.

    Raises:
        InputError: if the folder is no LSR adapter, does not fit its base model, no layer has as many terms, the error
            is out of reach, or a value is not usable.
    """
    folder, output = Path(folder), Path(output)
    check_values(separation_rank, error, None)
    check_output(output, (folder,), replace=force)
    model = load_adapter(folder, base)
    config, layers = model.peft_config[ADAPTER], adapted_layers(model)
    assert isinstance(config, LsrConfig)
    most = max(_terms(layer) for layer in layers.values())
    if separation_rank is not None and separation_rank >= most and error is None:
        raise InputError(f"--separation-rank must be below {most}, the most terms of a layer, got {separation_rank}")
    whole = _without_start(config)
    parts = {name: _pruned(name, layer, whole, separation_rank, error) for name, layer in layers.items()}
    others = {k: v for k, v in read_tensors(folder).items() if not re.search(r"\.lsr_([AB]\d+|fixed\.frame_\w+)$", k)}
    return write_parts(output, whole, parts, others)


def _without_start(config: LsrConfig) -> LsrConfig:
    """Return the configuration of an adapter that stores all of its factors and subtracts none.

    With a subtracted start, the update is that of factors of twice the rank: [B, -B0] and [A; A0]. Twice the aspect
    leaves the automatic shapes as they are.
    """
    times = 1 if config.residual == "zero" else 2
    return replace(
        config,
        residual="zero",
        frames="trained",
        deferred=False,
        budget=None,
        separation_rank=1,
        recipe={},
        separation_rank_pattern={},
        rank_shape=_times(config.rank_shape, times),
        rank_pattern={key: _times(shape, times) for key, shape in config.rank_pattern.items()},
        aspect=times * config.aspect,
    )


def _times(rank_shape: tuple[int, ...], factor: int) -> tuple[int, ...]:
    return factor * rank_shape[0], *rank_shape[1:]


def _terms(layer: LsrLayer) -> int:
    """Return the terms that hold a layer's whole update, its subtracted start included."""
    form = layer.form[ADAPTER]
    return form.separation_rank * (1 if layer.residual[ADAPTER] == "zero" else 2)


def _pruned(name: str, layer: LsrLayer, config: LsrConfig, separation_rank: int | None, error: float | None) -> Part:
    times = 1 if layer.residual[ADAPTER] == "zero" else 2
    form = layer.make_form(config, _times(layer.form[ADAPTER].rank_shape, times), separation_rank=1)
    most = min(_terms(layer), form.max_separation_rank)
    limit = most if separation_rank is None else min(separation_rank, most)
    right, left = (side.detach() for side in layer.as_lora(ADAPTER))
    fixed = layer.fixed(ADAPTER)
    slots = (
        torch.arange(count) if given is None else given
        for count, given in ((len(left), fixed.out_slots), (right.shape[1], fixed.in_slots))
    )
    update = Update(left, right, *slots)
    reduced = reduce_layer(name, update, form, limit, error, _sides(layer), _whole(layer, update))
    return Part(form, reduced, layer.scaling[ADAPTER], layer.sizes(ADAPTER).stored)


def _sides(layer: LsrLayer) -> tuple[Tensor, Tensor]:  # (m1 * ... * mD, r or 2r), (r or 2r, n1 * ... * nD)
    """Return B and A, or [B, -B0] and [A; A0], on all that the factors span: there they have as few terms as theirs."""
    a, b = (kron_sum(*(factor.detach().double() for factor in side)) for side in layer.factors(ADAPTER))
    if layer.residual[ADAPTER] == "zero":
        return b, a
    fixed, count = layer.fixed(ADAPTER), len(layer.form[ADAPTER].rank_shape)
    a0, b0 = (kron_sum(*(factor.double() for factor in fixed.start(side, count))) for side in "AB")
    return torch.cat([b, -b0], dim=1), torch.cat([a, a0])


def _whole(layer: LsrLayer, update: Update) -> Reduced | None:
    """Return a layer's own factors, which leave nothing out; None where a start is subtracted from them."""
    if layer.residual[ADAPTER] != "zero":
        return None
    a, b = ([factor.detach() for factor in side] for side in layer.factors(ADAPTER))
    return Reduced(a, b, 0.0, update.norm)
