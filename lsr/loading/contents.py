"""Read the contents of an LSR or LoRA adapter: the update of each layer, the heads, and the base model's name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lsr.errors import InputError, check_held, wrap_errors
from lsr.init.passes import widths
from lsr.loading.base_models import format_shape
from lsr.loading.updates import LORA_FACTOR, LSR, Updates, check_config, updates_in
from lsr.tuner.files import FACTOR, PREFIX, TASK, WRAPPED, Files, factors_by_layer, read_files, read_json
from lsr.tuner.forms import form_in_file
from lsr.tuner.options import Fields
from lsr.tuner.packing import Tensors
from lsr.tuner.targets import check_adaptable
from lsr_onnx.names import check_labels, make_label_names
from lsr_onnx.task import MAX_LABELS, TENANTS, are_names, validate_task_info

BASE_FIELDS = ("base_model_name_or_path", "revision", "task_type", "auto_mapping")

Modules = Mapping[str, nn.Module]  # modules of a base model by name


@dataclass(frozen=True)
class Contents:
    """The contents of an adapter's folder."""

    source: str
    base: Fields  # the configuration's BASE_FIELDS, which describe the base model
    updates: Updates  # updates of adapted layers by name
    heads: Tensors  # the tensors that it trained in full, by name in the base model
    endings: tuple[str, ...]  # name endings of the fully trained modules; after a dot, a whole name
    task: Fields | None  # contents of task.json, such as the names of labels; None if there is no such file
    bias: str = "none"  # biases that `heads` has in addition: "lsr_only" for those of adapted layers, or "all"
    dropout: float = 0.0
    # Known of an adapter in a model but not of one in a folder:
    modules: Sequence[str] | None = None  # names of all modules of the base model
    model_labels: Sequence[str] | None = None
    is_transposed: bool = False  # whether the weights of adapted layers are stored so

    @property
    def labels(self) -> Sequence[str] | None:
        """The names of the labels: empty for regression, by default LABEL_0 and so on; None without a head."""
        if self.task is not None and TENANTS not in self.task:
            return self.task.get("labels") or []
        if self.model_labels is not None:
            return self.model_labels
        weights = [value for value in self.heads.values() if value.dim() == 2]
        inputs = {weight.shape[1] for weight in weights}
        rows = [len(weight) for weight in weights]
        last = [count for count in rows if count not in inputs]  # a hidden layer has the width of another one's inputs
        outputs = min(last or rows, default=0)
        if outputs == 0:
            return None
        if outputs == 1:
            return []
        return make_label_names(outputs)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The shape of the weight of each adapted layer: outputs and inputs."""
        return {name: update.bases.shape for name, update in self.updates.items()}

    def fully_trained_modules(self, modules: Modules) -> list[str]:
        """Return the fully trained modules of a base model, selected by PEFT's rule for names."""
        whole: list[str] = []
        for name in modules:
            if not f".{name}".endswith(self.endings):
                continue
            if not name.startswith(tuple(f"{outer}." for outer in whole)):
                whole.append(name)
        return whole

    def head_tensors(self, modules: Modules, labels: int) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of each fully trained module (`labels` is the base model's number of labels).

        Raises:
            ValueError: if a tensor is missing, belongs to no such module, or has a wrong shape apart from the number of
                labels, or if the task names another number of labels.
        """
        states = {name: modules[name].state_dict() for name in self.fully_trained_modules(modules)}
        needed = {}
        for name, state in states.items():
            for key, value in state.items():
                needed[f"{name}.{key}"] = value
        check_held(self.heads, needed, "a head of the base model")
        labelled = by_label(needed, labels)
        outputs = [len(self.heads[key]) for key in labelled if self.heads[key].dim()]
        count = outputs[0] if outputs else labels
        for key, value in needed.items():
            shape = value.shape
            if key in labelled:
                shape = torch.Size((count, *shape[1:]))
            held = self.heads[key].shape
            if held != shape:
                raise ValueError(f"{key} of a head is {format_shape(held)}, needed: {format_shape(shape)}")
        if 0 in outputs:  # a slot of a bank without rows stands for the base model's head
            raise ValueError("its head has no outputs; at least one is needed")
        if count > MAX_LABELS:
            raise ValueError(f"its head has {count:,} outputs; at most {MAX_LABELS:,} are allowed")
        check_labels((self.task or {}).get("labels"), count)
        for name, state in states.items():
            states[name] = {key: self.heads[f"{name}.{key}"] for key in state}
        return states


def check_layers(shapes: Mapping[str, Sequence[int]], modules: Modules) -> None:
    """Check that a base model has layers of these names and shapes (outputs, inputs).

    Raises:
        ValueError: if a layer is missing or has other widths; names it.
        TypeError: if it is not a linear layer.
    """
    for name, shape in shapes.items():
        check_layer(name, modules)
        n, m = widths(modules[name])
        if tuple(shape) != (m, n):
            own = f"this one is {m} x {n}"
            raise ValueError(f"layer {name!r}: the adapter is for a layer of {format_shape(shape)}, {own}")


def check_layer(name: str, modules: Modules) -> None:
    """Check that a base model has an adaptable layer of this name.

    Raises:
        ValueError: if there is no such layer; TypeError if it is not a linear layer.
    """
    if name not in modules:
        raise ValueError(f"adapts a layer {name!r}, which the base model does not have")
    check_adaptable(modules[name], name)


def by_label(head: Tensors, labels: int) -> list[str]:
    """Return the tensors of a head that have one row per label."""
    return [name for name, value in head.items() if value.shape[:1] == (labels,)]


def read_contents(
    folder: str | Path | Files,
    method: str | None = None,
    *,
    with_biases: bool = False,
    head_alone: bool = False,
) -> Contents:
    """Read an LSR or plain LoRA adapter from its folder or files, without its base model.

    Raises:
        InputError: if it is another method (or not `method`), or its files are inconsistent; unless `with_biases`, if
            it trained biases of the base model; unless `head_alone`, if it adapts no layer.
    """
    files = read_files(folder, method)
    fields = files.fields
    bias = fields.get("bias", "none")
    if bias != "none" and not with_biases:
        raise InputError(f"{files.folder}: trains biases of the base model (bias={bias!r}), which is not supported")
    names = fields.get("modules_to_save") or []
    if not are_names(names) or "" in names:
        raise InputError(f"{files.folder}: modules_to_save must be a list of names, got {names!r}")
    updates = updates_in(files)
    heads = {}
    for name, value in files.tensors.items():
        # With bias="all" PEFT writes the biases of a head twice, by the names that they have inside its wrapper, too.
        if WRAPPED.search(name) or FACTOR.fullmatch(name) or LORA_FACTOR.fullmatch(name):
            continue
        heads[name.removeprefix(PREFIX)] = value
    if not updates and not (head_alone and heads):
        raise InputError(f"{files.folder}: holds no LoRA factors")
    return Contents(
        source=str(files.folder),
        base={name: fields.get(name) for name in BASE_FIELDS},
        updates=updates,
        heads=heads,
        endings=tuple(names),
        task=read_task(files.folder),
        bias="lsr_only" if bias == "lora_only" else bias,
        dropout=fields.get("dropout" if files.method == LSR else "lora_dropout", 0.0),
    )


def read_on(modules: Modules, folder: str | Path) -> Contents:
    """Read an adapter for a base model's modules, by name, with the errors of `read_contents` and `check_layers`.

    If widths do not fit those of the layers, A and B are not computed.
    """
    files = read_files(folder)
    if files.method == LSR:
        config = check_config(files)
        shapes = {}
        for name in factors_by_layer(files.tensors):
            form = form_in_file(config, name)
            shapes[name] = form.out_features, form.in_features
        with wrap_errors(files.folder, TypeError, ValueError):
            check_layers(shapes, modules)
    return read_contents(files, head_alone=True)


def read_task(folder: Path) -> dict[str, Any] | None:
    """Return the task info in an adapter's folder, with the errors of `validate_task_info`; None if there is none."""
    path = folder / TASK
    if not path.exists():
        return None
    return validate_task_info(read_json(path), folder)
