"""What tenants share: one adapter, trained with a head that has the rows of all of them, one after another.

The rows of the head's last layer are each tenant's own, and all else is common: it is merged into the base model once.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lsr.loading.adapters import load_adapter, load_onto, merged
from lsr.loading.contents import BASE_FIELDS, Contents, read_contents, read_task
from lsr.loading.task import TENANTS
from lsr.tuner.files import PREFIX, TASK, Files, read_files
from lsr.tuner.mistakes import InputError

SCALED_BY = ("peft_type", "use_rslora")  # fields that determine an adapter's scaling, in addition to its alpha
PLACEHOLDER = 2  # rows of zeros of the last layer, where no tenant's are


def split(folder: str | Path) -> tuple[Files, dict[str, Contents]]:
    """Return the common part of a tenants' adapter, and each tenant's part, by name.

    The common part is an adapter of the same method: its head's last layer has two rows of zeros. A tenant has the rows
    of this layer for its own labels, the note with their names, and no update.

    Raises:
        InputError: if the folder holds no adapter with tenants, or the last layer has not a row for each of the labels.
    """
    files = read_files(folder)
    note = read_task(files.folder) or {}
    tenants = note.pop(TENANTS, {})
    if not tenants:
        raise InputError(f"{files.folder / TASK}: names no tenants; needed: tenants with the names of their labels")
    sizes = [1 if labels is None else len(labels) for labels in tenants.values()]
    layer = last_layer(files)
    rows = {key: value for key, value in files.tensors.items() if key.startswith(f"{PREFIX}{layer}.")}
    for key, value in rows.items():
        if not value.dim() or len(value) != sum(sizes):
            raise InputError(f"{folder}: {key} is {tuple(value.shape)}, but its tenants have {sum(sizes)} outputs")
    zeros = {key: value.new_zeros(PLACEHOLDER, *value.shape[1:]) for key, value in rows.items()}
    common = files._replace(tensors={**files.tensors, **zeros})
    base = {name: files.fields.get(name) for name in BASE_FIELDS}
    pieces = {key.removeprefix(PREFIX): value.split(sizes) for key, value in rows.items()}
    own = dict[str, Contents]()
    for at, (name, labels) in enumerate(tenants.items()):
        heads, task = {key: its[at] for key, its in pieces.items()}, {**note, "labels": labels}
        own[name] = Contents(f"{folder}: {name}", base, {}, heads, (f".{layer}",), task)
    return common, own


def last_layer(files: Files) -> str:
    """Return the last linear layer of an adapter's head, which has a row for each label.

    A file does not keep the order of its tensors. So modules are in the order of `modules_to_save`, and the layers of
    one in that of their names, such as `dense` and `out_proj`.

    Raises:
        InputError: if it has no head.
    """
    weights = [name for name, value in files.tensors.items() if name.endswith(".weight") and value.dim() == 2]
    endings = files.fields.get("modules_to_save")
    for ending in reversed([*dict.fromkeys(endings)] if isinstance(endings, list) else []):
        inside = [name for name in weights if name.startswith(PREFIX) and f".{ending}." in name]
        if inside:
            return max(name.removeprefix(PREFIX).removesuffix(".weight") for name in inside)
    raise InputError(f"{files.folder}: an adapter of the method {files.method} has no head with rows of tenants")


def base_with(common: Files, base: nn.Module | str | None) -> nn.Module:
    """Return a base model, or that in a folder or hub repository, with a common adapter merged into it by PEFT.

    Its head's last layer has zeros. A model that is given is modified. The errors are those of `load_adapter` and
    `merged`.
    """
    if not isinstance(base, nn.Module):
        return merged(load_adapter(common, base, None), common)
    own, layer = base.state_dict(), f"{PREFIX}{last_layer(common)}."
    rows = {key: value for key, value in common.tensors.items() if key.startswith(layer)}
    zeros = {key: value.new_zeros(own.get(key.removeprefix(PREFIX), value).shape) for key, value in rows.items()}
    return merged(load_onto(base, common._replace(tensors={**common.tensors, **zeros})), common)


def fingerprint(common: Files | None) -> str | None:
    """Return a hash of what a common adapter computes: its method, its scaling, and the bytes of its tensors."""
    if common is None:
        return None
    scaling = {key: value for key, value in common.fields.items() if "alpha" in key or key in SCALED_BY}
    text = json.dumps(scaling, sort_keys=True)
    digest = hashlib.sha256()
    for name, tensor in sorted(common.tensors.items()):
        digest.update(f"{text} {name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor's entries as a safetensors file has them; of one on the CPU no copy is made."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def on_plain_base(common: Files | None, own: Contents) -> Contents:
    """Return what a bank has of an adapter as one of the plain base model: the common update, if any, plus its own.

    The errors are those of `read_contents`: the common adapter may be none of LSR or plain LoRA.
    """
    if common is None:
        return replace(own, endings=tuple(ending.removeprefix(".") for ending in own.endings))
    shared = read_contents(common, with_biases=True)
    updates = dict(shared.updates)
    for name, update in own.updates.items():
        updates[name] = updates[name].plus(update) if name in updates else update
    return replace(shared, source=own.source, updates=updates, heads={**shared.heads, **own.heads}, task=own.task)
