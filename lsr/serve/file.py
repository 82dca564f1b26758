"""The folder of a bank: a file with the stacks of all adapters, each set of frames once, and names in the header.

What tenants share is the folder of an adapter inside it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lsr.convert.writing import COMMON, check_output, write_files, writing
from lsr.loading.base_models import load_base
from lsr.loading.contents import checked_note
from lsr.loading.updates import Frames
from lsr.serve.admission import check_heads, check_name
from lsr.serve.common import base_with, fingerprint
from lsr.serve.modules import NOBODY, Version
from lsr.tuner.files import read_files, read_weights
from lsr.tuner.mistakes import InputError, explained

FILE = "bank.safetensors"
HEADERS = "lsr_bank_"  # and a version
HEADER = f"{HEADERS}7"
LAYERS, HEADS, FRAMES = "layers", "heads", "frames"  # kinds of tensors, which are named kind/module/stack/part


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a bank's header and its tensors, memory-mapped from the file.

    Raises:
        InputError: as `read_weights`, or if the file holds no bank, or one of another version.
    """
    tensors = read_weights(folder / FILE)
    metadata = safe_open(folder / FILE, framework="pt").metadata() or {}
    if HEADER not in metadata:
        others = [name for name in metadata if name.startswith(HEADERS)]
        reason = f"{others[0]}, needed: {HEADER}; write it again from its adapters" if others else "no bank"
        raise InputError(f"{folder / FILE}: {reason}")
    with explained(f"{folder / FILE}: a broken bank", ValueError, RecursionError):
        return json.loads(metadata[HEADER]), tensors


def load(kind: Any, base: Any, folder: Path) -> Any:
    """Return the AdapterBank, of a class, that `save` wrote.

    Raises:
        InputError: as `AdapterBank.load`.
    """
    header, tensors = read(folder)
    with explained(folder, ValueError, TypeError, AttributeError):
        try:
            common = None if header["common"] is None else read_files(folder / COMMON)
            if fingerprint(common) != header["common"]:
                raise InputError(f"{COMMON}: not the adapter that the tenants of this bank share")
            if common is not None:
                base = base_with(common, base)
            elif not isinstance(base, nn.Module):
                names = (key.partition("/")[2].rpartition("/")[0].replace("/", ".") for key in tensors)
                own = dict.fromkeys(names, torch.empty(0))  # the base model may lack heads
                base = load_base(header["base"], own, base)
            bank = kind(base, precision=header["precision"])
            bank.common = common
            _fill(bank, header, tensors)
        except KeyError as error:
            raise InputError(f"{error.args[0]!r} is missing in the base model or in the file") from None
    return bank


def _fill(bank: Any, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    for name in header["notes"]:
        check_name(name)
    bank.base_fields = header["base"]
    notes = {name: checked_note(note, name) for name, note in header["notes"].items()}
    bank.places = {name: place for place, name in enumerate(notes, start=NOBODY + 1)}
    bank.shared.size += len(bank.places)
    check_heads(bank.may_train, header["heads"])
    bank.wrap(header["layers"], header["heads"])
    frames = dict[str, Frames]()
    for name, (owner, core_size) in header["frames"].items():
        a, b = (tensors[f"{FRAMES}/{owner}/{side}"] for side in "ab")
        shared = frames.setdefault(owner, Frames(a=a, b=b))
        if not bank.layers[name].may_share(shared):
            raise InputError(f"{FRAMES}/{owner}/a holds values that are too large for the rows of all adapters")
        bank.layers[name].set_frames(shared, core_size)
    for name, stack in bank.stacks().items():
        with explained(name, ValueError):
            stack.restore(tensors[f"{name}/values"], tensors[f"{name}/counts"])
    sizes = bank.sizes()
    bank.versions = {name: Version(note, bank.base_fields, sizes[bank.places[name]]) for name, note in notes.items()}


def save(bank: Any, folder: Path, *, force: bool = False) -> None:
    """Write a bank.

    Raises:
        InputError: as `lsr.convert.writing`, or if the bank's precision cannot hold a value.
    """
    check_output(folder, (), replace=force)
    with bank.shared.one_thread:
        places = [NOBODY, *bank.places.values()]
        tensors = dict[str, Tensor]()
        for name, stack in bank.stacks().items():
            stored = stack.stored(places)
            if not stack.is_bounded(stored["values"]):
                raise InputError(f"{folder}: {name} overflows in {bank.shared.precision}")
            tensors |= {f"{name}/{part}": value for part, value in stored.items()}
        held = {name: layer.frames for name, layer in bank.layers.items() if layer.frames is not None}
        owners = {frames: name for name, frames in reversed(held.items())}  # the first layer of each
        for frames, owner in owners.items():
            tensors |= {f"{FRAMES}/{owner}/{side}": its.contiguous() for side, its in frames.named_buffers()}
        header: dict[str, Any] = {"base": bank.base_fields, "precision": bank.shared.precision, "notes": bank.notes}
        header |= {"layers": [*bank.layers], "heads": [*bank.heads]}
        header["frames"] = {name: (owners[its], bank.layers[name].core_size) for name, its in held.items()}
        header["common"] = fingerprint(bank.common)
        text = json.dumps(header)
    with writing(folder) as new:
        save_file(tensors, new / FILE, metadata={HEADER: text})
        if bank.common is not None:
            (new / COMMON).mkdir()
            write_files(new / COMMON, str(folder), bank.common.fields, bank.common.tensors)
