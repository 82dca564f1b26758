"""The file of a bank: the stacks of all adapters, each set of frames once, and an index of names in the header."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lsr.convert.writing import check_output, writing
from lsr.loading.files import InputError
from lsr.tuner.saved import first_line, read_weights

FILE = "bank.safetensors"
HEADER, VERSION = "lsr_bank", 4
LAYERS, HEADS, FRAMES = "layers", "heads", "frames"  # kinds of modules


@dataclass(frozen=True)
class Index:
    """The header. Adapter i of `notes` is at place i + 1; the first place is for rows with no adapter."""

    base: dict[str, Any]  # the base model according to the adapters' configurations
    labels: int  # of the base model
    precision: str
    notes: dict[str, Any]  # by adapter, any JSON value
    frames: dict[str, tuple[str, int]]  # by layer: the layer under whose name its frames are, and the entries of a core


def write(folder: Path, index: Index, tensors: Mapping[str, Tensor], *, force: bool) -> None:
    """Write a bank; its tensors are named kind/module/stack/part.

    Raises:
        InputError: if the folder exists and `force` is not set, or it cannot be written.
    """
    check_output(folder, (), replace=force)
    own = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with writing(folder) as new:
        save_file(own, new / FILE, metadata={HEADER: json.dumps({"version": VERSION, **asdict(index)})})


def read(folder: Path) -> tuple[Index, dict[str, dict[str, dict[str, Tensor]]]]:
    """Return a bank's index and its tensors by kind and module, memory-mapped from the file.

    Raises:
        InputError: if there is no bank, it is broken, or a value is not finite.
    """
    index, modules = read_index(folder), dict[str, dict[str, dict[str, Tensor]]]()
    for key, value in read_weights(folder / FILE).items():
        kind, _, rest = key.partition("/")
        module, _, part = rest.partition("/")
        modules.setdefault(kind, {}).setdefault(module, {})[part] = value
    return index, modules


def read_index(folder: Path) -> Index:
    """Return the header of a bank.

    Raises:
        InputError: if there is no bank, or it is broken.
    """
    path = folder / FILE
    if not path.is_file():
        raise InputError(f"{folder}: not a bank of adapters, {FILE} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "null"))
        return _index(header)
    except (SafetensorError, OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a bank of adapters, or cut off: {first_line(error)}") from None


def _index(header: Any) -> Index:
    if not isinstance(header, dict) or header.pop("version", None) != VERSION:
        raise ValueError(f"needed: a header of version {VERSION}")
    index = Index(**header)
    if not all(isinstance(one, dict) for one in (index.base, index.notes, index.frames)):
        raise ValueError("base, notes and frames must hold keys and values")
    return index
