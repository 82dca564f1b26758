"""The file of a bank: the stacks of all adapters, each set of frames once, and an index of names in the header."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lsr.convert.writing import check_output, writing
from lsr.loading.files import InputError
from lsr.tuner.saved import first_line, read_weights

FILE = "bank.safetensors"
HEADER, VERSION = "lsr_bank", 5
LAYERS, HEADS, FRAMES = "layers", "heads", "frames"  # kinds of modules


def write(folder: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor], *, force: bool) -> None:
    """Write a bank; its tensors are named kind/module/stack/part.

    Raises:
        InputError: if the folder exists and `force` is not set, or it cannot be written.
    """
    check_output(folder, (), replace=force)
    own = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with writing(folder) as new:
        save_file(own, new / FILE, metadata={HEADER: json.dumps({"version": VERSION, **header})})


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a bank's header and its tensors, memory-mapped from the file.

    Raises:
        InputError: if there is no bank, it is broken, or a value is not finite.
    """
    path = folder / FILE
    if not path.is_file():
        raise InputError(f"{folder}: not a bank of adapters, {FILE} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
        version = header.pop("version", None)
    except (SafetensorError, OSError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not a bank of adapters, or cut off: {first_line(error)}") from None
    if version != VERSION:
        raise InputError(f"{path}: not a bank of adapters of version {VERSION}")
    return header, read_weights(path)


def modules(tensors: Mapping[str, Tensor], kind: str) -> list[str]:
    """Return the modules of a kind."""
    names = (key.split("/")[:2] for key in tensors)
    return list(dict.fromkeys(name for its, name in names if its == kind))
