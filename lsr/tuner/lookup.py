"""What a model has of an adapter: its layers, those that share A and B, its configuration and the record of it."""

from collections import Counter
from typing import cast

from torch import nn

from lsr.tuner.config import LsrConfig
from lsr.tuner.injected import Injected
from lsr.tuner.layer import LsrLinear, adapted_layers
from lsr.tuner.mistakes import InputError
from lsr.tuner.sharing import Kind, kind_of


def layers_of(model: nn.Module, adapter_name: str) -> dict[str, LsrLinear]:
    """Return the layers that have this adapter, by name.

    Raises:
        InputError: if there is none.
    """
    layers = adapted_layers(model)
    adapted = {name: layer for name, layer in layers.items() if adapter_name in layer.lsr_adapters}
    if not adapted:
        known = sorted({name for layer in layers.values() for name in layer.lsr_adapters})
        raise InputError(f"the model has no LSR adapter {adapter_name!r}; it has {', '.join(known) or 'none'}")
    return adapted


def groups_of(model: nn.Module, adapter_name: str) -> dict[str, list[LsrLinear]]:
    """Return the layers that share factors, first the one that holds them, by name: of a layer, or of a kind."""
    share = config_of(model, adapter_name).share
    kinds: dict[Kind, list[LsrLinear]] = {}
    for name, layer in layers_of(model, adapter_name).items():
        kinds.setdefault(kind_of(name, layer.adapter(adapter_name).form, share), []).append(layer)
    patterns = Counter(kind.pattern for kind in kinds)
    return {str(kind) if patterns[kind.pattern] > 1 else kind.pattern: group for kind, group in kinds.items()}


def config_of(model: nn.Module, adapter_name: str) -> LsrConfig:
    """Return the configuration of an adapter that a model has."""
    return cast("dict[str, LsrConfig]", model.peft_config)[adapter_name]


def injected_in(model: nn.Module) -> dict[str, Injected]:
    """Return the records of a model's adapters by name; the base model has them, next to PEFT's configurations."""
    return getattr(model, "lsr_injected", {})
