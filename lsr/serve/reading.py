"""Read an adapter's folder for a bank: its layers, its heads, and the fields that show whether it fits the bank."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lsr.loading.adapters import ADAPTER, METHOD, load_layers
from lsr.loading.base_models import by
from lsr.loading.files import FACTOR, PREFIX, InputError, read_config, read_tensors
from lsr.tuner.adapter import LsrAdapter
from lsr.tuner.saved import CONFIG

BASE_FIELDS = ("base_model_name_or_path", "revision", "task_type", "auto_mapping")


@dataclass(frozen=True)
class Reading:
    """The contents of an adapter's folder."""

    source: str
    base: Mapping[str, Any]  # the configuration's BASE_FIELDS, which describe the base model
    adapters: Mapping[str, LsrAdapter]  # by layer
    base_sketch: Mapping[str, Sequence[float]]  # of one weight of the base model, by layer; or none
    base_hashes: Mapping[str, str]  # by layer: hash of the weight that the initial update was subtracted from
    whole: tuple[str, ...]  # name suffixes of the modules that it trained in full
    heads: Mapping[str, Tensor]  # the tensors of these modules, by name in the base model

    @property
    def is_core(self) -> bool:
        """Whether only cores were trained, between frozen frames."""
        return all(adapter.trained_part == "core" for adapter in self.adapters.values())


def read_adapter(folder: str | Path) -> Reading:
    """Read an adapter's folder; no base model is needed.

    Raises:
        InputError: if it is not an LSR adapter, its files are inconsistent, or it trained biases of the base model.
    """
    folder = Path(folder)
    fields = read_config(folder, METHOD)
    if fields.get("bias", "none") != "none":
        raise InputError(f"{folder}: trains biases of the base model (bias={fields['bias']!r}); a bank cannot")
    _, layers, sketch = load_layers(folder)
    whole = fields.get("modules_to_save") or []
    if not isinstance(whole, list) or not all(isinstance(word, str) for word in whole):
        raise InputError(f"{folder / CONFIG}: modules_to_save must be a list of names, got {whole!r}")
    heads = {key.removeprefix(PREFIX): value for key, value in read_tensors(folder).items() if not FACTOR.match(key)}
    hashes = (fields.get("resolved") or {}).get("base_hashes") or {}
    return Reading(
        str(folder),
        {name: fields.get(name) for name in BASE_FIELDS},
        {name: layer.adapter(ADAPTER).requires_grad_(False) for name, layer in layers.items()},
        sketch,
        hashes,
        tuple(whole),
        heads,
    )


def heads_of(reading: Reading, modules: Mapping[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of the modules that an adapter trained in full, by module and state-dict name.

    `modules` are the modules of the base model by name.

    Raises:
        InputError: if a tensor is missing or unexpected, or its shape differs from the base model's.
    """
    found: dict[str, dict[str, Tensor]] = {}
    left = dict(reading.heads)
    for name in names_of_heads(reading, modules):
        state = modules[name].state_dict()
        found[name] = {key: _fitting(reading, f"{name}.{key}", value, left) for key, value in state.items()}
    for name in left:
        raise InputError(f"{reading.source}: {name} does not belong to an adapter of this base model")
    return found


def names_of_heads(reading: Reading, modules: Mapping[str, nn.Module]) -> list[str]:
    """Return the names of the modules that an adapter trained in full: PEFT's rule, DistilBERT's pre_classifier too."""
    found: list[str] = []
    for name in modules:
        is_inside = name.startswith(tuple(f"{outer}." for outer in found))
        if name and not is_inside and name.endswith(reading.whole):
            found.append(name)
    return found


def _fitting(reading: Reading, name: str, room: Tensor, left: dict[str, Tensor]) -> Tensor:
    if name not in left:
        raise InputError(f"{reading.source}: {name} is missing")
    value = left.pop(name)
    if value.shape != room.shape:
        raise InputError(f"{reading.source}: {name} is {by(value.shape)}, but {by(room.shape)} in the base model")
    return value
