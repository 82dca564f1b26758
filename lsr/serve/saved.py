"""An adapter as its folder has it: its layers, its heads, and what tells whether a base model is its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lsr.loading.adapters import ADAPTER, METHOD, load_layers
from lsr.loading.base_models import by
from lsr.loading.files import FACTOR, PREFIX, InputError, read_config, read_tensors
from lsr.tuner.adapter import LsrAdapter
from lsr.tuner.base_weight import check_weight
from lsr.tuner.config import LsrConfig
from lsr.tuner.linear import LsrLinear

BASE_FIELDS = ("base_model_name_or_path", "revision", "task_type", "auto_mapping")
Modules = Mapping[str, nn.Module]  # of a base model, by name


@dataclass(frozen=True)
class SavedAdapter:
    """The contents of an adapter's folder."""

    source: str
    config: LsrConfig
    base: Mapping[str, Any]  # the configuration's BASE_FIELDS, which describe the base model
    layers: Mapping[str, LsrAdapter]
    heads: Mapping[str, Tensor]  # the tensors of the modules that it trained in full, by name in the base model

    @property
    def is_core(self) -> bool:
        """Whether only cores were trained, between frozen frames."""
        return all(adapter.trained_part == "core" for adapter in self.layers.values())

    def check_layers(self, modules: Modules) -> None:
        """Check that a base model has the layers that the adapter was trained on, as far as its files can tell.

        Raises:
            ValueError: names a layer that is missing or has other widths or weights; TypeError if it is no linear one.
        """
        hashes = self.config.resolved.base_hashes if self.config.resolved else {}
        for name, adapter in self.layers.items():
            layer = linear(modules, name)
            layer.make_form(self.config)
            if adapter.is_folded and name in hashes:
                check_weight(layer.pretrained_weight(), hashes[name], name)

    def whole(self, modules: Modules) -> list[str]:
        """Return the modules of a base model that it trained in full: PEFT's rule, DistilBERT's pre_classifier too."""
        found: list[str] = []
        for name in modules:
            is_inside = name.startswith(tuple(f"{outer}." for outer in found))
            if name.endswith(tuple(self.config.modules_to_save or ())) and not is_inside:
                found.append(name)
        return found

    def heads_on(self, modules: Modules) -> dict[str, dict[str, Tensor]]:
        """Return the state of each module of a base model that the adapter trained in full.

        Raises:
            ValueError: if a tensor is missing or unexpected, or its shape differs from the base model's.
        """
        rooms = {name: modules[name].state_dict() for name in self.whole(modules)}
        shapes = {f"{name}.{key}": by(room.shape) for name, state in rooms.items() for key, room in state.items()}
        found = {key: by(value.shape) for key, value in self.heads.items()}
        for key in sorted(shapes.keys() | found.keys()):
            if found.get(key) != shapes.get(key):
                have, needed = found.get(key, "missing"), shapes.get(key, "not there")
                raise ValueError(f"{key} is {have}, but {needed} in the base model")
        return {name: {key: self.heads[f"{name}.{key}"] for key in state} for name, state in rooms.items()}


def read_adapter(folder: str | Path) -> SavedAdapter:
    """Read an adapter's folder; no base model is needed.

    Raises:
        InputError: if it is not an LSR adapter, its files are inconsistent, or it trained biases of the base model.
    """
    folder = Path(folder)
    fields, tensors = read_config(folder, METHOD), read_tensors(folder)
    config, layers = load_layers(folder)
    if config.bias != "none":
        raise InputError(f"{folder}: trains biases of the base model (bias={config.bias!r}); a bank cannot")
    return SavedAdapter(
        str(folder),
        config,
        {name: fields.get(name) for name in BASE_FIELDS},
        {name: layer.adapter(ADAPTER).requires_grad_(False) for name, layer in layers.items()},
        {key.removeprefix(PREFIX): value for key, value in tensors.items() if not FACTOR.match(key)},
    )


def linear(modules: Modules, name: str) -> LsrLinear:
    """Return a layer of a base model as one that adapters can adapt.

    Raises:
        ValueError: if there is no such layer; TypeError if it is of another class.
    """
    if name not in modules:
        raise ValueError(f"adapts a layer {name!r}, which the base model does not have")
    return LsrLinear(modules[name], ADAPTER, name)
