"""An adapter as its folder has it, of LSR or LoRA: the update of each layer, its heads, and what its base model is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from lsr.init.passes import widths
from lsr.loading.adapters import ADAPTER, load_layers
from lsr.loading.base_models import by
from lsr.loading.lora import FACTOR as LORA_FACTOR
from lsr.loading.lora import lora_pairs
from lsr.loading.task_note import read_task
from lsr.tuner.base_weight import check_adaptable
from lsr.tuner.files import FACTOR, PREFIX, read_config, read_tensors
from lsr.tuner.mistakes import InputError

BASE_FIELDS = ("base_model_name_or_path", "revision", "task_type", "auto_mapping")


class Frames(nn.Module):
    """A (r, n) and B (m, r), which layers of one kind may share: a module, so that moving it keeps them shared."""

    a: Tensor
    b: Tensor

    def __init__(self, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.register_buffer("a", a)
        self.register_buffer("b", b)

    def equals(self, other: "Frames") -> bool:
        """Return whether these are the same frames, entry by entry."""
        return self is other or (self.a.equal(other.a.to(self.a)) and self.b.equal(other.b.to(self.b)))


class Update(NamedTuple):
    """The update of a layer, scaling * B R A, with A and B from `frames`, and R = 1 if there is no core."""

    frames: Frames
    scaling: float
    core: Tensor | None = None  # (r, r), or (r,) for a diagonal

    @property
    def widths(self) -> tuple[int, int]:
        """The widths of the layer, n and m."""
        return self.frames.a.shape[1], len(self.frames.b)

    def pair(self) -> tuple[Tensor, Tensor]:  # (m, r), (r, n), float64
        """Return two matrices whose product is the update."""
        frames = self.plain().frames
        return self.scaling * frames.b.double(), frames.a.double()

    def plain(self) -> "Update":
        """Return the same update without a core: R A takes the place of A."""
        a, core = self.frames.a, self.core
        if core is None:
            return self
        return Update(Frames(core[:, None] * a if core.dim() == 1 else core @ a, self.frames.b), self.scaling)


@dataclass(frozen=True)
class Contents:
    """The contents of an adapter's folder."""

    source: str
    base: Mapping[str, Any]  # the configuration's BASE_FIELDS, which describe the base model
    updates: Mapping[str, Update]  # by layer
    heads: Mapping[str, Tensor]  # the tensors of the modules that it trained in full, by name in the base model
    endings: tuple[str, ...]  # of the names of these modules
    task: Mapping[str, Any] | None  # what task.json says, such as the names of labels; None if there is no such file

    def check_layers(self, modules: Mapping[str, nn.Module]) -> None:
        """Check that a base model has the layers that the adapter was trained on, as far as its files can tell.

        Raises:
            ValueError: names a layer that is missing or has other widths; TypeError if it is no linear one.
        """
        for name, update in self.updates.items():
            if name not in modules:
                raise ValueError(f"adapts a layer {name!r}, which the base model does not have")
            layer = modules[name]
            check_adaptable(layer, name)
            (n, m), (own_n, own_m) = widths(layer), update.widths
            if (own_m, own_n) != (m, n):
                raise ValueError(
                    f"layer {name!r}: the adapter is for a layer of {own_m} x {own_n}, this one is {m} x {n}"
                )

    def whole(self, modules: Mapping[str, nn.Module]) -> list[str]:
        """Return the modules of a base model that it trained in full: PEFT's rule, DistilBERT's pre_classifier too."""
        found: list[str] = []
        for name in modules:
            if name.endswith(self.endings) and not name.startswith(tuple(f"{outer}." for outer in found)):
                found.append(name)
        return found

    def heads_on(self, modules: Mapping[str, nn.Module], labels: int) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of each module of a base model, with so many labels, that the adapter trained in full.

        Raises:
            ValueError: if a tensor is missing, is in no such module, or has another shape in anything but the number of
                labels, or if the task names another number of labels.
        """
        like = {name: modules[name].state_dict() for name in self.whole(modules)}
        needed = {f"{name}.{key}": value for name, its in like.items() for key, value in its.items()}
        for key in sorted(needed.keys() ^ self.heads.keys()):
            raise ValueError(f"{key} is {'missing' if key in needed else 'no part of a head of the base model'}")
        labelled = by_label(needed, labels)
        count = next((len(self.heads[key]) for key in labelled if self.heads[key].dim()), labels)
        for key, value in needed.items():
            shape = (count, *value.shape[1:]) if key in labelled else value.shape
            if self.heads[key].shape != shape:
                raise ValueError(f"{key} of a head is {by(self.heads[key].shape)}, needed: {by(shape)}")
        names = (self.task or {}).get("labels")
        if names is not None and len(set(names)) != count:
            raise ValueError(f"its task names {len(set(names))} labels, but its head has {count} outputs")
        return {name: {key: self.heads[f"{name}.{key}"] for key in its} for name, its in like.items()}


def by_label(head: Mapping[str, Tensor], labels: int) -> list[str]:
    """Return the tensors of a head that have a row for each label."""
    return [name for name, value in head.items() if value.shape[:1] == (labels,)]


def read_contents(folder: str | Path) -> Contents:
    """Read an adapter's folder, of LSR or plain LoRA; no base model is needed.

    Raises:
        InputError: if it is neither, its files are inconsistent, or it trained biases of the base model.
    """
    folder = Path(folder)
    fields, tensors = read_config(folder), read_tensors(folder)
    if fields.get("bias", "none") != "none":
        raise InputError(f"{folder}: trains biases of the base model (bias={fields['bias']!r}), which is not supported")
    return Contents(
        str(folder),
        {name: fields.get(name) for name in BASE_FIELDS},
        read_updates(folder, fields),
        {
            key.removeprefix(PREFIX): value
            for key, value in tensors.items()
            if not (FACTOR.fullmatch(key) or LORA_FACTOR.fullmatch(key))
        },
        _endings(folder, fields),
        read_task(folder),
    )


def _endings(folder: Path, fields: Mapping[str, Any]) -> tuple[str, ...]:
    names = fields.get("modules_to_save") or []
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise InputError(f"{folder}: modules_to_save must be a list of names, got {names!r}")
    return tuple(names)


def read_updates(folder: Path, fields: Mapping[str, Any]) -> dict[str, Update]:
    """Return the update of each layer of an adapter of LSR or plain LoRA, whose configuration is given.

    Raises:
        InputError: if it is neither, or its files are inconsistent.
    """
    if fields["peft_type"] == "LORA":
        pairs = lora_pairs(folder, fields).items()
        return {name: Update(Frames(its.a, its.b), its.alpha / len(its.a)) for name, its in pairs}
    updates, frames = {}, dict[int, Frames]()
    for name, layer in load_layers(folder).layers.items():
        adapter = layer.adapter(ADAPTER)
        if adapter.trained_part == "core":
            its = frames.setdefault(id(adapter.frames), _detached(*adapter.matrices(*adapter.factors())))
            updates[name] = Update(its, adapter.scaling, adapter.core.detach())
        else:
            updates[name] = Update(_detached(*adapter.collapse()), adapter.scaling)
    return updates


def updates_in(folder: Path, fields: Mapping[str, Any]) -> dict[str, tuple[Tensor, Tensor]]:  # (m, r), (r, n), float64
    """Return two matrices whose product is the update of each layer, with the errors of `read_updates`."""
    return {name: update.pair() for name, update in read_updates(folder, fields).items()}


def _detached(a: Tensor, b: Tensor) -> Frames:
    return Frames(*(side.detach().clone() for side in (a, b)))
