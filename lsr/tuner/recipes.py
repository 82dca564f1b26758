"""The recipe of a start: what an adapter's file says so that a start made again is the same one, or an error.

Frozen frames and subtracted starts are functions of the seed or of the base weight, so they are not stored. A recipe
holds, for each layer, a hash of the base weight and a probe of the factors: the hash tells another base model apart,
the probe another numerical outcome, such as a flipped sign on another machine.
"""

import hashlib
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, TypedDict

import torch
from torch import Tensor

from lsr.init.factorize import Start
from lsr.tuner.config import LsrConfig
from lsr.tuner.layer import LsrLayer

TOLERANCE = 1e-4  # of the factors' length: fp64 decompositions agree to 1e-10 over LAPACK drivers, flips differ by 1


class Entry(TypedDict):
    """Of one layer. `weight` is the SHA-256 of the base weight's bytes, None where the start does not depend on it."""

    weight: str | None
    probe: list[float]


def describe(entries: Mapping[str, Entry]) -> dict[str, Any]:
    """Return the recipe for the adapter's JSON; without entries, it says no more than that the adapter was started."""
    return {"layers": dict(entries), "torch": torch.__version__} if entries else {}


def entry(layer: LsrLayer, start: Start, config: LsrConfig) -> Entry:
    """Return what identifies a layer's start."""
    weight = None if config.start == "random" else weight_hash(layer)
    return Entry(weight=weight, probe=probe([*start.a, *start.b]))


def weight_hash(layer: LsrLayer) -> str:
    """Return the SHA-256 of the pretrained weight's bytes, as the base layer stores them."""
    weight = layer.pretrained_weight().cpu().contiguous()
    return hashlib.sha256(weight.view(torch.uint8).numpy().data).hexdigest()


def probe(factors: Iterable[Tensor]) -> list[float]:
    """Return one number a factor: its product with a fixed wave, relative to its length.

    A flipped or exchanged term changes it by about 1 / sqrt(s), rounding by 1e-10.
    """
    found = []
    for factor in factors:
        values = factor.double().flatten()
        wave = torch.cos(torch.arange(len(values), dtype=torch.float64) ** 1.5)
        found.append(float(values @ wave / values.norm().clamp(min=torch.finfo(torch.float64).tiny)))
    return found


def start_again(layers: Mapping[str, LsrLayer], adapter_name: str, config: LsrConfig) -> None:
    """Make again what the adapter's file does not hold, and check that it is what the adapter was trained with.

    Raises:
        ValueError: if the base model is another one, or the start comes out differently; names the layer.
    """
    assert config.recipe is not None
    for name, expected in config.recipe.get("layers", {}).items():
        layer = layers.get(name)
        if layer is None:
            raise ValueError(f"the adapter was started on a layer {name!r} that this base model does not have")
        layer.check_values()
        if expected["weight"] is not None and expected["weight"] != weight_hash(layer):
            raise ValueError(
                f"layer {name!r}: this is not the base model that the adapter was started from: the weight "
                f"{tuple(layer.base_parameter().shape)} in {layer.base_parameter().dtype} has another hash"
            )
        start = layer.start_again(adapter_name, config)
        pairs = zip(probe(chain(start.a, start.b)), expected["probe"], strict=True)
        if any(abs(found - known) > TOLERANCE for found, known in pairs):
            raise ValueError(
                f"layer {name!r}: the start {config.start!r} comes out differently here (torch {torch.__version__}) "
                f"than where the adapter was trained (torch {config.recipe['torch']})"
            )
