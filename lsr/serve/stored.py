"""The file of a bank: the stacks of all adapters, each frame once, and an index of names in the header."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lsr.convert.writing import check_output, writing
from lsr.loading.base_models import by
from lsr.loading.files import InputError
from lsr.tuner.mixed_batch import BASE
from lsr.tuner.resolved import sketches_from_fields
from lsr.tuner.saved import DTYPES, first_line

FILE = "bank.safetensors"
HEADER, VERSION = "lsr_bank", 1
FRAMES = ("frames_a", "frames_b")
Stacks = Mapping[str, Tensor]  # by name in a layer or head


@dataclass(frozen=True)
class Index:
    """The header. Adapter i of `notes` is in slot i + 1 of each stack; the first slot is for rows with no adapter."""

    base: dict[str, Any]  # the base model according to the adapters' configurations
    collapse: bool
    notes: dict[str, Any]  # by adapter, any JSON value
    base_sketch: dict[str, Any] = field(default_factory=dict)  # of one weight of the base model, by layer


def write(
    folder: Path, index: Index, layers: Mapping[str, Stacks], heads: Mapping[str, Stacks], *, force: bool
) -> None:
    """Write a bank; frames that several layers share in memory are written once.

    Raises:
        InputError: if the folder exists and `force` is not set, or it cannot be written.
    """
    check_output(folder, (), replace=force)
    tensors: dict[str, Tensor] = {}
    keys: dict[str, dict[str, dict[str, str]]] = {"layers": {}, "heads": {}}
    held: dict[int, str] = {}  # by address
    for kind, modules in (("layers", layers), ("heads", heads)):
        for module, stacks in modules.items():
            keys[kind][module] = {}
            for name, value in stacks.items():
                key = held.setdefault(value.data_ptr(), f"{len(tensors)}")
                tensors[key] = value.detach().cpu().contiguous()
                keys[kind][module][name] = key
    header = json.dumps({"version": VERSION, **asdict(index), **keys}, sort_keys=False)
    with writing(folder) as new:
        save_file(tensors, new / FILE, metadata={HEADER: header})


def read_index(folder: Path) -> Index:
    """Return the header of a bank.

    Raises:
        InputError: if there is no bank, or it is broken.
    """
    return _index(folder / FILE, _header(folder / FILE))


def read(folder: Path) -> tuple[Index, dict[str, dict[str, Tensor]], dict[str, dict[str, Tensor]]]:
    """Return a bank's index and the stacks of its layers and heads by name, memory-mapped from the file.

    Raises:
        InputError: if there is no bank, it is broken, or a value is not finite.
    """
    path = folder / FILE
    header = _header(path)
    index = _index(path, header)
    tensors = _tensors(path)
    try:
        layers, heads = (
            {str(module): {str(n): tensors[key] for n, key in names.items()} for module, names in header[kind].items()}
            for kind in ("layers", "heads")
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: its header does not fit its tensors: {first_line(error)}") from None
    places = len(index.notes) + 1
    for module, stacks in (*layers.items(), *heads.items()):
        for name, value in stacks.items():
            if name not in FRAMES and (not value.dim() or len(value) != places):
                raise InputError(f"{path}: {module}: {name} is {by(value.shape)}; needed: {places} x ...")
    return index, layers, heads


def _header(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path.parent}: not a bank of adapters, {path.name} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[HEADER])
    except KeyError:
        raise InputError(f"{path}: not a bank of adapters: its header has no {HEADER}") from None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: corrupt or cut off: {first_line(error)}") from None
    if not isinstance(header, dict) or header.get("version") != VERSION:
        raise InputError(f"{path}: not a bank of version {VERSION}")
    return header


def _index(path: Path, header: Mapping[str, Any]) -> Index:
    base, collapse, notes = (header.get(name) for name in ("base", "collapse", "notes"))
    if not (isinstance(base, dict) and isinstance(collapse, bool) and isinstance(notes, dict) and notes):
        raise InputError(f"{path}: its header names no adapters")
    if not all(isinstance(base.get(name), str | None) for name in ("base_model_name_or_path", "revision", "task_type")):
        raise InputError(f"{path}: its header names a base model by something else than strings")
    if BASE in notes or "" in notes:
        raise InputError(f"{path}: its header names an adapter {BASE!r} or nothing")
    try:
        sketch = sketches_from_fields(header.get("base_sketch"))
    except (TypeError, ValueError, AttributeError):
        raise InputError(f"{path}: its header has a base_sketch that is none") from None
    return Index(base, collapse, notes, sketch)


def _tensors(path: Path) -> dict[str, Tensor]:
    found = {}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 it is no mapping
            value = found[key] = file.get_tensor(key)
            if value.dtype not in DTYPES or (value.is_floating_point() and not torch.isfinite(value).all()):
                raise InputError(f"{path}: tensor {key} has a dtype or values that no bank can have")
    return found
