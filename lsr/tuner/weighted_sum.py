"""PEFT's `add_weighted_adapter`: an adapter that is a weighted sum of others, layer by layer and exactly."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil, isfinite

import torch
from torch import Tensor

from lsr.algebra.stacked import Product, sum_products
from lsr.init.factorize import Start
from lsr.tuner.config import LsrConfig
from lsr.tuner.layer import LsrLayer

AS_LORA = "; as LoRA (python -m lsr export --to lora) adapters can be combined in other ways"
EXACT = "cat"  # PEFT's word for ranks that add up
MOST_ROUNDOFF = 1e-9  # of a rank that is a product of floats


def check_request(
    configs: Mapping[str, LsrConfig], adapters: Sequence[str], weights: Sequence[float], new: str, kind: str
) -> None:
    """Check what a user asks `add_weighted_adapter` for.

    Raises:
        ValueError: names the argument and what is possible.
    """
    if kind != EXACT:
        raise ValueError(
            f"combination_type must be {EXACT!r}, by which ranks add up and the sum is exact, got {kind!r}{AS_LORA}"
        )
    for name in adapters:
        if name not in configs:
            raise ValueError(f"adapters: no adapter is named {name!r}; there are {sorted(configs)}")
        if configs[name].bias != "none":
            raise ValueError(f"adapters: {name!r} trains biases too (bias={configs[name].bias!r}): these have no sum")
    if not adapters or len(weights) != len(adapters):
        raise ValueError(f"weights must hold one number an adapter, {len(adapters)}, got {len(weights)}")
    if not all(map(isfinite, weights)):
        raise ValueError(f"weights must be finite, got {list(weights)}")
    if new in configs:
        raise ValueError(f"adapter_name: there is an adapter {new!r} already; there are {sorted(configs)}")


def sum_adapters(
    layers: Mapping[str, LsrLayer],
    configs: Mapping[str, LsrConfig],
    adapters: Sequence[str],
    weights: Sequence[float],
) -> tuple[LsrConfig, dict[str, Start]]:
    """Return the configuration of the weighted sum, which keeps the shapes of the adapters, and its factors by layer.

    A start that is subtracted becomes part of the factors. The scaling is 1: it is in B.

    Raises:
        ValueError: if the sum has no exact form of this kind; names the layer and why.
    """
    products = {name: _products(layer, adapters, weights) for name, layer in layers.items()}
    products = {name: found for name, found in products.items() if found}
    config = _base_config(configs, adapters, list(products))
    # Automatic shapes depend on r1 / aspect alone, so an aspect that grows as r1 does leaves them as they are. It is
    # one for all layers: where fewer adapters sit on a layer than on others, rows of zeros fill up.
    unit = {name: _first_rank_at_aspect_one(layers[name], configs, adapters) for name in products}
    config.aspect = max(sum(p.first_rank for p in found) / unit[name] for name, found in products.items())
    starts = {
        name: _start(layers[name], config, adapters, found, ceil(config.aspect * unit[name] - MOST_ROUNDOFF))
        for name, found in products.items()
    }
    ranks = {name: tuple(factor.shape[1] for factor in start.a) for name, start in starts.items()}
    terms = {name: len(start.a[0]) for name, start in starts.items()}
    return config.with_layers(ranks, terms, dict.fromkeys(starts, 1.0)), starts


def _products(layer: LsrLayer, adapters: Sequence[str], weights: Sequence[float]) -> list[Product]:
    found = []
    for name, weight in zip(adapters, weights, strict=True):
        if name in layer.scaling:
            coefficient, fixed = weight * layer.scaling[name], layer.fixed(name)
            a, b = ([factor.detach() for factor in side] for side in layer.factors(name))
            found.append(Product(coefficient, a, b))
            if fixed.has_start:
                found.append(Product(-coefficient, fixed.start("A", len(a)), fixed.start("B", len(b))))
    return found


def _first_rank_at_aspect_one(layer: LsrLayer, configs: Mapping[str, LsrConfig], adapters: Sequence[str]) -> float:
    name = next(name for name in adapters if name in layer.scaling)
    return layer.form[name].rank_shape[0] / configs[name].aspect


def _base_config(configs: Mapping[str, LsrConfig], adapters: Sequence[str], layers: Sequence[str]) -> LsrConfig:
    chosen = [configs[name] for name in dict.fromkeys(adapters)]
    # Whether a file has an order of inputs and outputs follows from the configuration: it must be one that has.
    first = max(chosen, key=lambda config: (config.align, config.align and config.fits_outputs))
    fields = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
    targets = {field: getattr(first, field) for field in fields}
    if any(getattr(config, field) != value for config in chosen for field, value in targets.items()):
        targets = {**dict.fromkeys(fields), "target_modules": "|".join(map(re.escape, layers))}
    heads = dict.fromkeys(head for config in chosen for head in config.modules_to_save or [])
    return replace(
        first,
        **targets,
        modules_to_save=list(heads) or None,
        residual="zero",
        frames="trained",
        deferred=False,
        separation_rank=1,  # until the terms are known
        separation_rank_pattern={},
        budget=None,
        recipe={},
    )


def _start(
    layer: LsrLayer, config: LsrConfig, adapters: Sequence[str], products: Sequence[Product], first_rank: int
) -> Start:
    present = [name for name in adapters if name in layer.scaling]
    form = layer.form[present[0]]
    for name in present[1:]:
        other = layer.form[name]
        for what in ("in_shape", "out_shape"):
            if getattr(other, what) != getattr(form, what):
                raise _mismatch(layer, present[0], name, what, getattr(form, what), getattr(other, what))
        if other.rank_shape[1:] != form.rank_shape[1:]:
            raise _mismatch(layer, present[0], name, "rank_shape after r1", form.rank_shape, other.rank_shape)
        if any(not torch.equal(*_slots(layer, side, present[0], name)) for side in ("in_slots", "out_slots")):
            raise _mismatch(layer, present[0], name, "order of inputs and outputs", "its own", "another (align)")
    rank_shape = (first_rank, *form.rank_shape[1:])
    new = layer.make_form(replace(config, rank_shape=rank_shape), rank_shape, separation_rank=1)
    if (new.in_shape, new.out_shape) != (form.in_shape, form.out_shape):
        raise ValueError(
            f"layer {layer.layer_name!r}: the automatic shapes {form.out_shape} x {form.in_shape} are others at the "
            f"rank {rank_shape}: give the adapters in_shape and out_shape{AS_LORA}"
        )
    try:
        a, b = sum_products(products, first_rank, new.max_separation_rank)
    except ValueError as error:
        raise ValueError(f"layer {layer.layer_name!r}: {error}{AS_LORA}") from None
    fixed = layer.fixed(present[0])
    return Start(a, b, fixed.in_slots, fixed.out_slots)


def _slots(layer: LsrLayer, side: str, *adapters: str) -> list[Tensor]:
    """Return which place in the factors' span each input or output has, by adapter."""
    width = layer.in_features if side == "in_slots" else layer.out_features
    given = [getattr(layer.fixed(name), side) for name in adapters]
    return [torch.arange(width) if slots is None else slots.long().cpu() for slots in given]


def _mismatch(layer: LsrLayer, first: str, other: str, what: str, one: object, two: object) -> ValueError:
    return ValueError(
        f"layer {layer.layer_name!r}: adapters {first!r} and {other!r} differ in {what}, {one} and {two}, so their sum "
        f"is no sum of Kronecker products of these shapes{AS_LORA}"
    )
