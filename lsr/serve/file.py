"""The file of a bank: the stacks of all adapters, each set of frames once, and an index of names in the header."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lsr.convert.writing import check_output, writing
from lsr.loading.base_models import by
from lsr.loading.files import InputError
from lsr.tuner.saved import first_line, read_weights

FILE = "bank.safetensors"
HEADER, VERSION = "lsr_bank", 2
KINDS = ("layers", "heads", "frames")  # the first two have a slot per adapter
Contents = dict[str, dict[str, dict[str, Tensor]]]  # by kind, module and part


@dataclass(frozen=True)
class Index:
    """The header. Adapter i of `notes` is in slot i + 1 of each stack; the first slot is for rows with no adapter."""

    base: dict[str, Any]  # the base model according to the adapters' configurations
    notes: dict[str, Any]  # by adapter, any JSON value
    frames: dict[str, str] = field(default_factory=dict)  # by layer: the layer under whose name its frames are stored


def write(folder: Path, index: Index, contents: Contents, *, force: bool) -> None:
    """Write a bank.

    Raises:
        InputError: if the folder exists and `force` is not set, or it cannot be written.
    """
    check_output(folder, (), replace=force)
    tensors = {
        f"{kind}/{module}/{part}": value.detach().cpu().contiguous()
        for kind, modules in contents.items()
        for module, parts in modules.items()
        for part, value in parts.items()
    }
    with writing(folder) as new:
        save_file(tensors, new / FILE, metadata={HEADER: json.dumps({"version": VERSION, **asdict(index)})})


def read(folder: Path) -> tuple[Index, Contents]:
    """Return a bank's index and its tensors, memory-mapped from the file.

    Raises:
        InputError: if there is no bank, it is broken, or a value is not finite.
    """
    index, contents = read_index(folder), Contents({kind: {} for kind in KINDS})
    for key, value in read_weights(folder / FILE).items():
        kind, _, name = key.partition("/")
        module, _, part = name.partition("/")
        if kind not in KINDS or (kind != "frames" and value.shape[:1] != (len(index.notes) + 1,)):
            raise InputError(f"{folder / FILE}: {key} is {by(value.shape)}; needed: {len(index.notes) + 1} x ...")
        contents[kind].setdefault(module, {})[part] = value
    return index, contents


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
            return _index(json.loads((file.metadata() or {}).get(HEADER, "null")))
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not a bank of adapters, or cut off: {first_line(error)}") from None


def _index(header: Any) -> Index:
    if not isinstance(header, dict) or header.pop("version", None) != VERSION:
        raise ValueError(f"needed: a header of version {VERSION}")
    index = Index(**header)
    if not all(isinstance(one, dict) for one in (index.base, index.notes, index.frames)):
        raise ValueError("base, notes and frames must hold keys and values")
    return index
