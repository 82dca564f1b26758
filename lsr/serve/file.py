"""The folder of a bank: a file with the stacks of all adapters, each set of frames once, and names in the header.

What tenants share is the folder of an adapter inside it.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lsr.convert.writing import COMMON, check_output, write_files, writing
from lsr.loading.update import Frames
from lsr.serve.admission import check_name
from lsr.serve.common import fingerprint
from lsr.serve.stack import NOBODY
from lsr.tuner.files import PREFIX, Files, read_files, read_weights
from lsr.tuner.mistakes import InputError, first_line

FILE = "bank.safetensors"
HEADER = "lsr_bank_6"  # with the version
LAYERS, HEADS, FRAMES = "layers", "heads", "frames"  # kinds of tensors, which are named kind/module/stack/part


@contextmanager
def read(folder: Path) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """Yield a bank's header and its tensors, memory-mapped from the file; what does not fit them is one line.

    Raises:
        InputError: if there is no bank, it is broken, or a value is not finite; in place of errors inside.
    """
    try:
        with safe_open(folder / FILE, framework="pt") as file:
            header = json.loads(file.metadata()[HEADER])
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{folder / FILE}: no bank of this version, or cut off: {first_line(error)}") from None
    try:
        yield header, read_weights(folder / FILE)
    except KeyError as error:
        raise InputError(f"{folder}: {error.args[0]!r} is missing in the base model or in the file") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{folder}: {first_line(error)}") from None


def read_common(folder: Path, header: Mapping[str, Any]) -> Files | None:
    """Return the adapter that the tenants of a bank share, if they do.

    Raises:
        InputError: if it is missing, broken, or another one.
    """
    if header["common"] is None:
        return None
    common = read_files(folder / COMMON)
    if fingerprint(common) != header["common"]:
        raise InputError(f"{COMMON}: not the adapter that the tenants of this bank share")
    return common


def heads_in(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the names of tensors that a base model may lack, since all adapters have them, with empty tensors."""
    names = (key.partition("/")[2].rpartition("/")[0].replace("/", ".") for key in tensors)
    return {f"{PREFIX}{name}": torch.empty(0) for name in names}


def fill(
    bank: Any,  # an empty AdapterBank
    header: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> None:
    """Give a bank what its file holds.

    Raises:
        InputError: if that does not fit its base model or itself; KeyError, ValueError, TypeError and AttributeError if
            the header is broken.
    """
    for name in header["notes"]:
        check_name(name)
    bank.base_fields, bank.notes = header["base"], {name: dict(its) for name, its in header["notes"].items()}
    bank.places = {name: place for place, name in enumerate(bank.notes, start=NOBODY + 1)}
    bank.shared.size += len(bank.places)
    bank.admission.check_heads(header["heads"])
    bank.wrap(header["layers"], header["heads"])
    frames = dict[str, Frames]()
    for name, (owner, core_size) in header["frames"].items():
        a, b = (tensors[f"{FRAMES}/{owner}/{side}"] for side in "ab")
        bank.layers[name].set_frames(frames.setdefault(owner, Frames(a=a, b=b)), core_size)
    for name, stack in bank.stacks().items():
        values, slots = tensors[f"{name}/values"], tensors[f"{name}/slots"]
        fits = values.dtype is stack.values.dtype and values.shape[1:] == stack.values.shape[1:]
        if not fits or len(slots) != len(stack.slots) or ((slots < 0) | (slots >= len(values))).any():
            raise InputError("its values do not fit the base model or the names of its adapters")
        stack.values, stack.slots = values, slots.int()


def save(bank: Any, folder: Path, *, force: bool = False) -> None:
    """Write a bank, with the errors of `lsr.convert.writing`."""
    check_output(folder, (), replace=force)
    with bank.shared.one_thread:
        places = [NOBODY, *bank.places.values()]
        parts = {name: stack.stored(places).items() for name, stack in bank.stacks().items()}
        tensors = {f"{name}/{part}": value for name, its in parts.items() for part, value in its}
        held = {name: layer.frames for name, layer in bank.layers.items() if layer.frames is not None}
        owners = {frames: name for name, frames in reversed(held.items())}  # the first layer of each
        for frames, owner in owners.items():
            tensors |= {f"{FRAMES}/{owner}/{side}": its.contiguous() for side, its in frames.named_buffers()}
        header: dict[str, Any] = {"base": bank.base_fields, "precision": bank.shared.precision, "notes": bank.notes}
        header |= {"layers": [*bank.layers], "heads": [*bank.heads]}
        header["frames"] = {name: (owners[its], bank.layers[name].core_size) for name, its in held.items()}
        header["common"] = None if bank.common is None else fingerprint(bank.common)
        text = json.dumps(header)
    with writing(folder) as new:
        save_file(tensors, new / FILE, metadata={HEADER: text})
        if bank.common is not None:
            (new / COMMON).mkdir()
            write_files(new / COMMON, str(folder), bank.common.fields, bank.common.tensors)
