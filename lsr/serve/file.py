"""The file of a bank: the stacks of all adapters, each set of frames once, and names in the header."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lsr.tuner.files import read_weights
from lsr.tuner.mistakes import InputError, first_line

FILE = "bank.safetensors"
HEADER = "lsr_bank_5"  # with the version
LAYERS, HEADS, FRAMES = "layers", "heads", "frames"  # kinds of tensors, which are named kind/module/stack/part


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a bank's header and its tensors, memory-mapped from the file.

    Raises:
        InputError: if there is no bank, it is broken, or a value is not finite.
    """
    try:
        with safe_open(folder / FILE, framework="pt") as file:
            header = json.loads(file.metadata()[HEADER])
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{folder / FILE}: no bank of this version, or cut off: {first_line(error)}") from None
    return header, read_weights(folder / FILE)
