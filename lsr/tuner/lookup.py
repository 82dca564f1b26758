"""Look up an adapter in a model: its layers, the groups that share A and B, its configuration and its record."""

from collections import Counter, defaultdict
from typing import cast

from torch import nn

from lsr.errors import InputError
from lsr.tuner.config import LsrConfig
from lsr.tuner.injected import Injected
from lsr.tuner.layer import LsrLinear, find_lsr_layers
from lsr.tuner.sharing import layer_group_of

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
    """Return the groups of layers that share factors by name (a layer or a group), owners of factors first."""
    share = config_of(model, adapter_name).share
    layer_groups = defaultdict(list)
    for name, layer in layers_of(model, adapter_name).items():
        form = layer.adapter(adapter_name).form
        layer_group = layer_group_of(name, form, share)
        layer_groups[layer_group].append(layer)
    patterns = Counter(layer_group.pattern for layer_group in layer_groups)
    groups = {}
    for layer_group, group in layer_groups.items():
        is_only = patterns[layer_group.pattern] == 1
        name = layer_group.pattern if is_only else str(layer_group)
        groups[name] = group
    return groups


def config_of(model: nn.Module, adapter_name: str) -> LsrConfig:
    """Return the configuration of a model's adapter."""
    return cast("dict[str, LsrConfig]", model.peft_config)[adapter_name]


def find_injected(model: nn.Module) -> dict[str, Injected]:
    """Return the records of a model's adapters by name, which the base model stores next to PEFT's configurations."""
    return getattr(model, RECORDS, {})
