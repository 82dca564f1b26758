"""What tenants share: one adapter, trained with a head that has the rows of all of them, one after another.

The rows of the head's last layer are each tenant's own, and all else is common: it is merged into the base model once.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lsr.convert.as_lsr import as_lsr
from lsr.loading.adapters import load_files, load_onto, merged
from lsr.loading.contents import Contents, base_fields, check_labels, contents_of, modules_to_save, read_task
from lsr.loading.lsr import LSR
from lsr.serve.admission import check_name
from lsr.tuner.files import PREFIX, TASK, Files, read_files
from lsr.tuner.mistakes import InputError
from lsr.tuner.options import OWN
from lsr.tuner.sharing import frames_hash

PLACEHOLDER = 2  # rows of zeros of the last layer, where no tenant's are


def is_shared(folder: Path) -> bool:
    """Return whether an adapter's folder has tenants: its task.json names them."""
    return (read_task(folder) or {}).get("tenants") is not None


def split(folder: str | Path) -> tuple[Files, dict[str, Contents]]:
    """Return the common part of a tenants' adapter, and each tenant's part, whose updates are empty.

    The common part is an adapter of the same method: its head's last layer has two rows of zeros. A tenant has the rows
    of this layer for its own labels, and the note with their names.

    Raises:
        InputError: if the folder holds no adapter with tenants, or a name is not allowed, or the rows of the last layer
            are not those of the tenants' labels.
    """
    files = read_files(folder)
    note = read_task(files.folder) or {}
    tenants = note.pop("tenants", None)
    sizes = list(_sizes(files.folder / TASK, tenants).values())
    layer = last_layer(files)
    rows = {key: value for key, value in files.tensors.items() if key.startswith(f"{PREFIX}{layer}.")}
    for key, value in rows.items():
        if not value.dim() or len(value) != sum(sizes):
            raise InputError(f"{folder}: {key} is {tuple(value.shape)}, but its tenants have {sum(sizes)} outputs")
    pieces = {key.removeprefix(PREFIX): value.split(sizes) for key, value in rows.items()}
    own = {
        name: Contents(
            source=f"{folder}: {name}",
            base=base_fields(files),
            updates={},
            heads={key: its[at] for key, its in pieces.items()},
            endings=(f".{layer}",),
            task={**note, "labels": labels},
        )
        for at, (name, labels) in enumerate(tenants.items())
    }
    return _on_its_own(_with_rows(files, dict.fromkeys(rows, PLACEHOLDER))), own


def _sizes(where: Path, tenants: Any) -> dict[str, int]:
    """Return how many outputs each tenant has.

    Raises:
        InputError: if these are no tenants with their labels.
    """
    if not isinstance(tenants, dict) or not tenants:
        raise InputError(f"{where}: names no tenants; needed: tenants with the names of their labels")
    for name, labels in tenants.items():
        try:
            check_name(name)
        except ValueError as error:
            raise InputError(f"{where}: {error}") from None
        check_labels(f"{where}: {name}", labels)
    return {name: 1 if labels is None else len(labels) for name, labels in tenants.items()}


def last_layer(files: Files) -> str:
    """Return the last linear layer of an adapter's head, which has a row for each label.

    A file does not keep the order of its tensors. So modules are in the order of `modules_to_save`, and the layers of
    one in that of their names, such as `dense` and `out_proj`.

    Raises:
        InputError: if it has no head.
    """
    endings, found = modules_to_save(files), list[tuple[int, bool, str]]()
    for key, value in files.tensors.items():
        layer, _, kind = key.removeprefix(PREFIX).rpartition(".")
        parts = layer.split(".")
        paths = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
        its = [at for at, ending in enumerate(endings) if any(path.endswith(ending) for path in paths)]
        exact = [at for at in its if any(f".{path}".endswith(f".{endings[at]}") for path in paths)]
        if kind == "weight" and value.dim() == 2 and its:
            found.append(((exact or its)[0], bool(exact), layer))
    if not found:
        raise InputError(f"{files.folder}: has no head, whose last layer would hold the rows of tenants")
    return max(found)[2]


def _with_rows(files: Files, counts: Mapping[str, int]) -> Files:
    """Return an adapter with zeros in place of some tensors, so many rows of each."""
    zeros = {key: files.tensors[key].new_zeros(count, *files.tensors[key].shape[1:]) for key, count in counts.items()}
    return files._replace(tensors={**files.tensors, **zeros})


def _on_its_own(files: Files) -> Files:
    """Return an adapter with its frames, if they are in another folder, which nobody finds from a bank's."""
    if files.method != LSR or files.fields.get("frames", OWN) == OWN:
        return files
    return Files(files.folder, *as_lsr(contents_of(files)))


def base_with(common: Files, base: nn.Module | str | None) -> nn.Module:
    """Return a base model, or the one in a folder or hub repository, with a common adapter merged into it by PEFT.

    Its head's last layer has zeros. A model that is given is modified.

    Raises:
        InputError: if the adapter cannot be merged or does not fit, or there is no such base model.
    """
    try:
        if not isinstance(base, nn.Module):
            return merged(load_files(common, base))
        state, layer = base.state_dict(), last_layer(common)
        keys = [key for key in common.tensors if key.startswith(f"{PREFIX}{layer}.")]
        fitting = {key: len(its) for key in keys if (its := state.get(key.removeprefix(PREFIX))) is not None}
        return merged(load_onto(base, _with_rows(common, fitting)))
    except ValueError as error:
        raise InputError(str(error) if isinstance(error, InputError) else f"{common.folder}: {error}") from None


def fingerprint(common: Files) -> str:
    """Return a hash of what a common adapter computes: its method, its scaling, and the bytes of its tensors."""
    fields = {
        key: value for key, value in common.fields.items() if "alpha" in key or key in ("peft_type", "use_rslora")
    }
    return frames_hash({json.dumps(fields, sort_keys=True): common.tensors})


def for_plain_base(common: Files | None, own: Contents) -> Contents:
    """Return an adapter of a bank as one of the plain base model: the common update plus its own, and a whole head.

    Raises:
        InputError: if the common adapter is none of LSR or plain LoRA.
    """
    if common is None:
        return replace(own, endings=tuple(ending.removeprefix(".") for ending in own.endings))
    shared = contents_of(common)
    updates = dict(shared.updates)
    for name, update in own.updates.items():
        updates[name] = updates[name].plus(update) if name in updates else update
    heads: dict[str, Tensor] = {**shared.heads, **own.heads}
    return replace(shared, source=own.source, updates=updates, heads=heads, task=own.task)
