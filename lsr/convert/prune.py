"""Write a trained LSR adapter with fewer Kronecker terms, with a certificate of the error."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lsr.algebra.separable import kron_sum
from lsr.algebra.shapes import Form
from lsr.convert.certificate import Certificate, Part, check_values, reduce_layer, write_parts
from lsr.convert.files import FACTOR, InputError, check_output, read_tensors
from lsr.convert.loading import ADAPTER, load_adapter
from lsr.convert.refit import Reduced, Update
from lsr.tuner.adapter import LsrAdapter
from lsr.tuner.config import LsrConfig
from lsr.tuner.linear import adapted_layers


def prune_adapter(
    folder: str | Path,
    output: str | Path,
    *,
    separation_rank: int | None = None,
    error: float | None = None,
    base: str | None = None,
    force: bool = False,
) -> Certificate:
    """Write a trained LSR adapter with fewer terms: the trailing ones are dropped and the rest is refitted.

    With `error` each layer gets the fewest terms that reach it, at most `separation_rank` if that is given too. An
    initial update that was subtracted becomes part of the factors, which then have twice the rank.

    Raises:
        InputError: if the folder is not an LSR adapter, does not fit its base model or has no terms to drop, the error
            is out of reach, or a value is not allowed.
    """
    folder, output = Path(folder), Path(output)
    check_values(separation_rank, error, None)
    check_output(output, (folder,), replace=force)
    model = load_adapter(folder, base)
    config, layers = model.peft_config[ADAPTER], adapted_layers(model)
    assert isinstance(config, LsrConfig)
    if config.has_core or len(config.rank_shape) < 2:
        raise InputError(f"{folder}: has no Kronecker terms to drop, or has a core (train: {config.train})")
    most = max(_terms(layer.adapter(ADAPTER)) for layer in layers.values())
    if separation_rank is not None and separation_rank >= most and error is None:
        raise InputError(f"--separation-rank must be below {most}, the most terms of a layer, got {separation_rank}")
    parts = {name: _pruned(name, layer.adapter(ADAPTER), separation_rank, error) for name, layer in layers.items()}
    others = {key: value for key, value in read_tensors(folder).items() if not FACTOR.fullmatch(key)}
    return write_parts(output, config, parts, others)


def _terms(adapter: LsrAdapter) -> int:
    """Return the number of terms of the whole update, including a subtracted initial update."""
    return adapter.form.separation_rank * (2 if adapter.has_start else 1)


def _whole_form(adapter: LsrAdapter) -> Form:
    """Return the form of the whole update, with one term: of twice the rank if an initial update is subtracted."""
    first, *rest = adapter.form.rank_shape
    return replace(adapter.form, rank_shape=(2 * first if adapter.has_start else first, *rest), separation_rank=1)


def _pruned(name: str, adapter: LsrAdapter, separation_rank: int | None, error: float | None) -> Part:
    form = _whole_form(adapter)
    most = min(_terms(adapter), form.max_separation_rank)
    limit = most if separation_rank is None else min(separation_rank, most)
    right, left = (side.detach() for side in adapter.as_lora())
    update = Update(left, right)
    reduced = reduce_layer(name, update, form, limit, error, _sides(adapter), _whole(adapter, update))
    return Part(form, reduced, adapter.scaling, adapter.sizes().stored)


def _sides(adapter: LsrAdapter) -> tuple[Tensor, Tensor]:  # (m1 * ... * mD, r or 2r), (r or 2r, n1 * ... * nD)
    """Return B and A, or [B, -B0] and [A; A0], including the padding: cropped, they may need more terms."""
    a, b = (kron_sum(*(factor.detach().double() for factor in side)) for side in adapter.factors())
    if not adapter.has_start:
        return b, a
    a0, b0 = (kron_sum(*(factor.double() for factor in side)) for side in adapter.start_factors())
    return torch.cat([b, -b0], dim=1), torch.cat([a, a0])


def _whole(adapter: LsrAdapter, update: Update) -> Reduced | None:
    """Return the adapter's own factors, without error; None if an initial update is subtracted from them."""
    if adapter.has_start:
        return None
    a, b = ([factor.detach() for factor in side] for side in adapter.factors())
    return Reduced(a, b, 0.0, update.norm)
