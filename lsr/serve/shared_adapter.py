"""The adapter that tenants share, trained with a head that concatenates the rows of all tenants.

The rows of the head's last layer belong to one tenant each. All else is shared and merged into the base model once.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from lsr.errors import InputError
from lsr.loading.adapters import load_adapter, load_onto, merge_adapter
from lsr.loading.contents import BASE_FIELDS, Contents, read_contents, read_task
from lsr.tuner.files import PREFIX, TASK, Files, read_files
from lsr.tuner.options import Fields
from lsr_onnx.task import TENANTS

SCALED_BY = ("peft_type", "use_rslora")  # fields that determine an adapter's scaling, in addition to its alpha
PLACEHOLDER = 2  # rows of zeros of the last layer, where no tenant's are

Shapes = dict[str, Sequence[int]]  # shapes of tensors by name


def split(folder: str | Path) -> tuple[Files, dict[str, Contents]]:
    """Split a multi-tenant adapter into the shared part and the tenants' parts by name.

    The shared part is an adapter of the same method whose head's last layer has two rows of zeros. A tenant's part has
    the rows of this layer for its labels and the task info with their names, but no update.

    Raises:
        InputError: if the folder is not a multi-tenant adapter, or the last layer does not have one row per label.
    """
    files = read_files(folder)
    task_info = read_task(files.folder) or {}
    tenants = task_info.pop(TENANTS, {})
    if not tenants:
        raise InputError(f"{files.folder / TASK}: names no tenants; needed: tenants with the names of their labels")
    sizes = list(map(_outputs, tenants.values()))
    count = sum(sizes)
    layer = last_layer(files)
    rows = _rows_of(layer, files)
    shapes = Shapes()  # shapes of the shared tensors
    pieces = list[Sequence[Tensor]]()  # pieces of each tensor by tenant
    for key, value in rows.items():
        if not value.dim() or len(value) != count:
            shape = tuple(value.shape)
            raise InputError(f"{folder}: {PREFIX}{key} is {shape}, but its tenants have {count} outputs")
        shapes[key] = (PLACEHOLDER, *value.shape[1:])
        pieces.append(value.split(sizes))
    base = {field: files.fields.get(field) for field in BASE_FIELDS}
    task_infos = _task_infos_of(task_info, tenants)
    own = dict[str, Contents]()
    for name, *values in zip(tenants, *pieces, strict=True):
        own[name] = Contents(
            source=f"{folder}: {name}",
            base=base,
            updates={},
            heads=dict(zip(rows, values, strict=True)),
            endings=(f".{layer}",),
            task=task_infos[name],
        )
    return _with_zeros(files, shapes), own


def _task_infos_of(task_info: Fields, tenants: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the task info of each tenant: the common one with its own labels and, if there is one, its temperature."""
    common = dict(task_info)
    temperatures = common.pop("temperatures", None) or []
    task_infos = {name: {**common, "labels": labels} for name, labels in tenants.items()}
    if len(temperatures) == 1:  # one for all
        temperatures *= len(task_infos)
    for own, temperature in zip(task_infos.values(), temperatures, strict=False):
        own["temperatures"] = [temperature]
    return task_infos


def _outputs(labels: Sequence[str] | None) -> int:
    if labels is None:  # a number
        return 1
    return len(labels)


def _rows_of(layer: str, files: Files) -> dict[str, Tensor]:
    """Return the tensors of a layer of an adapter's head, by their names in the base model."""
    rows = dict[str, Tensor]()
    for key, value in files.tensors.items():
        name = key.removeprefix(PREFIX)
        if name != key and name.startswith(f"{layer}."):
            rows[name] = value
    return rows


def _with_zeros(files: Files, shapes: Shapes) -> Files:
    """Return an adapter in which zeros of these shapes replace the named tensors of the base model."""
    tensors = dict(files.tensors)
    for name, shape in shapes.items():
        key = f"{PREFIX}{name}"
        tensors[key] = tensors[key].new_zeros(shape)
    return files._replace(tensors=tensors)


def last_layer(files: Files) -> str:
    """Return the last linear layer of an adapter's head, which has one row per label.

    A file does not keep the order of its tensors, so modules are ordered as in `modules_to_save`, and layers of a
    module by name, such as `dense` before `out_proj`.

    Raises:
        InputError: if the adapter has no head.
    """
    layers = list[str]()
    for key, value in files.tensors.items():
        is_weight = key.startswith(PREFIX) and key.endswith(".weight")
        if is_weight and value.dim() == 2:
            layers.append(key.removesuffix(".weight"))
    modules = files.fields.get("modules_to_save")
    names = dict.fromkeys(modules) if isinstance(modules, list) else {}
    for module in reversed(names):
        inside = [layer for layer in layers if f".{module}." in f"{layer}."]
        if inside:
            return max(inside).removeprefix(PREFIX)
    raise InputError(f"{files.folder}: an adapter of the method {files.method} has no head with rows of tenants")


def base_with(shared_adapter: Files, base: nn.Module | str | None) -> nn.Module:
    """Merge a shared adapter by PEFT into a base model, given as a model, folder or hub repository.

    The head's last layer becomes zero. A given model is modified. The errors are those of `load_adapter` and
    `merge_adapter`.
    """
    if not isinstance(base, nn.Module):
        loaded = load_adapter(shared_adapter, base, None)
        return merge_adapter(loaded, shared_adapter)
    own = base.state_dict()
    layer = last_layer(shared_adapter)
    rows = _rows_of(layer, shared_adapter)
    shapes = Shapes()
    for key, value in rows.items():
        tensor = own.get(key, value)
        shapes[key] = tensor.shape
    with_zeros = _with_zeros(shared_adapter, shapes)
    model = load_onto(base, with_zeros)
    return merge_adapter(model, shared_adapter)


def fingerprint(shared_adapter: Files | None) -> str | None:
    """Return a hash of a shared adapter's function: its method, scaling and tensors."""
    if shared_adapter is None:
        return None
    scaling = dict[str, Any]()
    for key, value in shared_adapter.fields.items():
        if "alpha" in key or key in SCALED_BY:
            scaling[key] = value
    text = json.dumps(scaling, sort_keys=True)
    content = text.encode() + save(shared_adapter.tensors)
    return hashlib.sha256(content).hexdigest()


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor as in a safetensors file, without a copy if it is on the CPU."""
    entries = tensor.detach().cpu().contiguous().flatten()
    return entries.view(torch.uint8).numpy().data


def on_plain_base(shared_adapter: Files | None, own: Contents) -> Contents:
    """Return an adapter of a bank relative to the plain base model: the shared update, if any, plus its own.

    The errors are those of `read_contents`: the shared adapter must be LSR or plain LoRA.
    """
    if shared_adapter is None:
        endings = [ending.removeprefix(".") for ending in own.endings]
        return replace(own, endings=tuple(endings))
    shared = read_contents(shared_adapter, with_biases=True)
    updates = dict(shared.updates)
    for name, update in own.updates.items():
        if name in updates:
            update = updates[name].plus(update)
        updates[name] = update
    return replace(
        shared,
        source=own.source,
        updates=updates,
        heads={**shared.heads, **own.heads},
        task=own.task,
    )
