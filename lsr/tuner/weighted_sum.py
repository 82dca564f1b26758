"""PEFT's `add_weighted_adapter`: an adapter that is the exact weighted sum of others, layer by layer."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import NoReturn

from torch import Tensor

from lsr.algebra.shapes import Form, max_separation_rank
from lsr.algebra.stacked import Product, sum_products
from lsr.init.initialization import Start
from lsr.tuner.adapter import LsrAdapter
from lsr.tuner.config import LsrConfig
from lsr.tuner.layer import LsrLayer

AS_LORA = "; as LoRA (python -m lsr export --to lora) adapters can be combined in other ways"
EXACT = "cat"  # PEFT's name for the combination in which ranks add up


def check_request(
    configs: Mapping[str, LsrConfig], adapters: Sequence[str], weights: Sequence[float], new: str, kind: str
) -> None:
    """Check the arguments of `add_weighted_adapter`.

    Raises:
        ValueError: names the argument and the allowed values.
    """
    if kind != EXACT:
        raise ValueError(
            f"combination_type must be {EXACT!r}, where ranks add up and the sum is exact, got {kind!r}{AS_LORA}"
        )
    for name in adapters:
        if name not in configs:
            raise ValueError(f"adapters: no adapter is named {name!r}; there are {sorted(configs)}")
        if configs[name].bias != "none":
            raise ValueError(
                f"adapters: {name!r} trains biases too (bias={configs[name].bias!r}), which cannot be summed"
            )
    if not adapters or len(weights) != len(adapters):
        raise ValueError(f"weights must hold one number per adapter, {len(adapters)}, got {len(weights)}")
    if not all(map(isfinite, weights)):
        raise ValueError(f"weights must be finite, got {list(weights)}")
    if "." in new:
        raise ValueError(f"adapter_name: a name cannot hold a dot, got {new!r}")
    if new in configs:
        raise ValueError(f"adapter_name: there is an adapter {new!r} already; there are {sorted(configs)}")


def sum_adapters(
    layers: Mapping[str, LsrLayer],
    configs: Mapping[str, LsrConfig],
    adapters: Sequence[str],
    weights: Sequence[float],
) -> tuple[LsrConfig, dict[str, Start]]:
    """Return the configuration of the weighted sum, with the shapes of the adapters, and its factors by layer.

    An initial update that is subtracted becomes part of the factors. The scaling is 1, because B includes it.

    Raises:
        ValueError: if the sum has no exact form of this kind; names the layer and why.
    """
    forms, starts = {}, {}
    for name, layer in layers.items():
        if any(adapter in layer.lsr_adapters for adapter in adapters):
            forms[name], starts[name] = _sum_in_layer(layer, adapters, weights)
    config = _base_config(configs, adapters, list(forms))
    return config.with_layers(forms, dict.fromkeys(forms, 1.0)), starts


def _sum_in_layer(layer: LsrLayer, adapters: Sequence[str], weights: Sequence[float]) -> tuple[Form, Start]:
    form = _common_form(layer, [name for name in adapters if name in layer.lsr_adapters])
    products = _products(layer, adapters, weights)
    rank_shape = (sum(product.first_rank for product in products), *form.rank_shape[1:])
    most = min(max_separation_rank(rank_shape, shape) for shape in (form.in_shape, form.out_shape))
    try:
        a, b = sum_products(products, rank_shape[0], most)
    except ValueError as error:
        raise ValueError(f"layer {layer.layer_name!r}: {error}{AS_LORA}") from None
    return replace(form, rank_shape=rank_shape, separation_rank=len(a[0])), Start(a, b)


def _common_form(layer: LsrLayer, names: Sequence[str]) -> Form:
    """Return the form of the first adapter; the others may differ from it only in r1 and in their number of terms."""
    form = layer.adapter(names[0]).form
    for name in names[1:]:
        other = layer.adapter(name).form
        for what in ("in_shape", "out_shape"):
            if getattr(other, what) != getattr(form, what):
                _refuse(layer, names[0], name, what, getattr(form, what), getattr(other, what))
        if other.rank_shape[1:] != form.rank_shape[1:]:
            _refuse(layer, names[0], name, "rank_shape after r1", form.rank_shape, other.rank_shape)
    return form


def _products(layer: LsrLayer, adapters: Sequence[str], weights: Sequence[float]) -> list[Product]:
    found = []
    for name, weight in zip(adapters, weights, strict=True):
        if name in layer.lsr_adapters:
            adapter = layer.adapter(name)
            coefficient = weight * adapter.scaling
            a, b = ([factor.detach() for factor in side] for side in _exact_factors(layer, adapter))
            found.append(Product(coefficient, a, b))
            if adapter.has_start:
                found.append(Product(-coefficient, *adapter.start_factors()))
    return found


def _exact_factors(layer: LsrLayer, adapter: LsrAdapter) -> tuple[list[Tensor], list[Tensor]]:
    """Return factors whose product is the update without the scaling; a core is multiplied into a dense A.

    Raises:
        ValueError: if there is a core between Kronecker factors; names the layer.
    """
    if not adapter.has_core:
        return adapter.factors()
    if len(adapter.form.rank_shape) > 1:
        raise ValueError(f"layer {layer.layer_name!r}: with a core its update is no sum of Kronecker products{AS_LORA}")
    a, b = adapter.collapse()
    return [a[None]], [b[None]]


def _base_config(configs: Mapping[str, LsrConfig], adapters: Sequence[str], layers: Sequence[str]) -> LsrConfig:
    chosen = [configs[name] for name in dict.fromkeys(adapters)]
    fields = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
    targets = {field: getattr(chosen[0], field) for field in fields}
    if any(getattr(config, field) != value for config in chosen for field, value in targets.items()):
        targets = {**dict.fromkeys(fields), "target_modules": "|".join(map(re.escape, layers))}
    heads = dict.fromkeys(head for config in chosen for head in config.modules_to_save or [])
    return replace(chosen[0], **targets, modules_to_save=list(heads) or None)


def _refuse(layer: LsrLayer, first: str, other: str, what: str, one: object, two: object) -> NoReturn:
    raise ValueError(
        f"layer {layer.layer_name!r}: adapters {first!r} and {other!r} differ in {what}, {one} and {two}, so their sum "
        f"is no sum of Kronecker products of these shapes{AS_LORA}"
    )
