"""Degrees of freedom: the dimension of the set of updates that an adapter can reach near its trained parameters.

Directions that leave the update unchanged, such as rescaling one factor against another, do not count. Each rule holds
for factors in general position with ranks below the limits of their sizes; a test compares the rules with the rank of
the Jacobian.
"""

from collections import Counter

import torch
from peft import C3AConfig, FourierFTConfig, IA3Config, LNTuningConfig, LoKrConfig, LoraConfig, PeftModel, VeraConfig
from peft.tuners.fourierft.layer import FourierFTLayer
from peft.tuners.lokr import LoKrLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.vera import VeraLayer

import lsr
from lsr.tuner.adapter import LsrAdapter
from lsr.tuner.linear import adapted_layers
from pipeline.methods.bitfit import BitfitConfig
from pipeline.methods.kadaptation import KadaptationConfig, KadaptationLinear

# Each parameter changes the model in an independent direction.
LINEAR = (C3AConfig, IA3Config, LNTuningConfig, BitfitConfig)


def degrees_of_freedom(model: PeftModel, trained: int) -> int | None:
    """Return the degrees of freedom of a model's adapter with `trained` parameters; None if there is no rule."""
    config = model.peft_config["default"]
    if isinstance(config, lsr.LsrConfig):
        return _of_lsr([layer.adapter("default") for layer in adapted_layers(model).values()])
    if isinstance(config, LINEAR):
        return trained
    layers = model.modules()
    if isinstance(config, FourierFTConfig):
        return sum(_waves(layer) for layer in layers if isinstance(layer, FourierFTLayer))
    if isinstance(config, VeraConfig):
        return trained - sum(isinstance(layer, VeraLayer) for layer in layers)
    if isinstance(config, LoKrConfig):
        return trained - sum(_surplus_of_lokr(layer) for layer in layers if isinstance(layer, LoKrLayer))
    if isinstance(config, KadaptationConfig):
        # In each term U and V share a basis in every layer, and the shared factor a scale with all of them.
        count = sum(isinstance(layer, KadaptationLinear) for layer in layers)
        return trained - config.n * (count * config.r**2 + 1)
    if type(config) is LoraConfig and not config.use_dora:
        found = [layer for layer in layers if isinstance(layer, LoraLayer)]
        # An adapter without layers trains whole modules.
        return trained - sum(layer.r["default"] ** 2 for layer in found)
    return None


def _surplus_of_lokr(layer: LoKrLayer) -> int:
    """Return how many directions leave the update alone: a scale between the factors, and a basis inside each pair."""
    pairs = [side for side in (layer.lokr_w1_b, layer.lokr_w2_b) if "default" in side]
    return 1 + sum(len(side["default"]) ** 2 for side in pairs)


def _waves(layer: FourierFTLayer) -> int:
    """Return the number of independent frequencies: opposite ones have the same real part."""
    rows, columns = layer.indices["default"]
    height, width = layer.out_features, layer.in_features
    here, opposite = rows * width + columns, -rows % height * width + -columns % width
    return len(torch.minimum(here, opposite).unique())


def _of_lsr(adapters: list[LsrAdapter]) -> int | None:
    holders = Counter(id(adapter.frames) for adapter in adapters)
    total = 0
    for adapter in adapters:
        surplus = _surplus(adapter, holders[id(adapter.frames)])
        if surplus is None:
            return None
        is_owner = adapter.frames is adapter
        total += adapter.sizes().trained - (surplus if is_owner else 0)
    return total


def _surplus(adapter: LsrAdapter, sharing: int) -> int | None:
    """Return how many directions of the factors and the core, or all cores between them, leave the updates alone."""
    ranks, terms = adapter.form.rank_shape, adapter.form.separation_rank
    squares = [rank**2 for rank in ranks]
    match adapter.trained_part, len(ranks):
        case "core", _:
            return 0
        case "factors", 1:
            return squares[0]
        case "factors", 2:  # the terms of each sum mix, and A and B share a basis of each inner rank
            return 2 * terms**2 + sum(squares) - 1
        case "all", 1 if adapter.core.dim() == 2:
            return 2 * squares[0]
        case "all", 1:  # several diagonal cores determine everything except the scales
            return 2 * ranks[0] if sharing > 1 else squares[0] + ranks[0]
    return None
