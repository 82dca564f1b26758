"""Look up an adapter in a model: its layers, the groups that share A and B, its configuration and its record."""

from collections import Counter, defaultdict
from typing import cast

from torch import nn

from lsr.tuner.config import LsrConfig
from lsr.tuner.injected import Injected
from lsr.tuner.layer import LsrLinear, find_lsr_layers
from lsr.tuner.mistakes import InputError
from lsr.tuner.sharing import kind_of

RECORDS = "lsr_injected"  # the attribute of a base model with the records of its adapters


def layers_of(model: nn.Module, adapter_name: str) -> dict[str, LsrLinear]:
    """Return the layers that have this adapter, by name.

    Raises:
        InputError: if the model has no such adapter.
    """
    layers = find_lsr_layers(model)
    adapted = {name: layer for name, layer in layers.items() if adapter_name in layer.lsr_adapters}
    if not adapted:
        known = ", ".join(find_injected(model)) or "none"
        raise InputError(f"the model has no LSR adapter {adapter_name!r}; it has {known}")
    return adapted


def groups_of(model: nn.Module, adapter_name: str) -> dict[str, list[LsrLinear]]:
    """Return the groups of layers that share factors by name (a layer or a kind), owners of factors first."""
    share = config_of(model, adapter_name).share
    kinds = defaultdict(list)
    for name, layer in layers_of(model, adapter_name).items():
        form = layer.adapter(adapter_name).form
        kind = kind_of(name, form, share)
        kinds[kind].append(layer)
    patterns = Counter(kind.pattern for kind in kinds)
    groups = {}
    for kind, group in kinds.items():
        is_only = patterns[kind.pattern] == 1
        name = kind.pattern if is_only else str(kind)
        groups[name] = group
    return groups


def config_of(model: nn.Module, adapter_name: str) -> LsrConfig:
    """Return the configuration of a model's adapter."""
    return cast("dict[str, LsrConfig]", model.peft_config)[adapter_name]


def find_injected(model: nn.Module) -> dict[str, Injected]:
    """Return the records of a model's adapters by name, which the base model stores next to PEFT's configurations."""
    return getattr(model, RECORDS, {})
