"""Frames shared by many adapters: read from the folder of one of them and identified by hash."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from huggingface_hub import hf_hub_download
from torch import Tensor

from lsr.algebra.shapes import Form
from lsr.tuner.config import OWN, LsrConfig
from lsr.tuner.expressions import check_expressions
from lsr.tuner.factors import LsrFactors, entries
from lsr.tuner.kinds import Kind, kind_of
from lsr.tuner.layer import LsrLayer
from lsr.tuner.saved import CONFIG, WEIGHTS, first_line, read_fields, read_weights

PREFIX, INFIX = "base_model.model.", ".lsr_adapters."
PARTS = ("factor_", "scale_")
MOST_ENTRIES = 2**30  # of A and B together: as many as a 23,000 x 23,000 layer has at full rank

HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")

Owner = Kind | str  # a kind, whose layers share their frames, or the name of a layer
Tensors = Mapping[str, Tensor]  # factor_A1, scale_A1, ...


@dataclass(frozen=True)
class Family:
    """Frames by owner."""

    source: str
    share: str
    storage: str
    frames: Mapping[Owner, tuple[Form, Tensors]]
    sha256: str
    base_sketch: Mapping[str, Sequence[float]]  # of one weight of the base model they are for, by layer; or none

    def owner(self, layer_name: str, form: Form) -> Owner:
        """Return the owner of a layer's frames.

        Raises:
            ValueError: if there are no frames of the layer's form; names the layer.
        """
        owner = _owner(self.share, layer_name, form)
        if owner in self.frames and self.frames[owner][0] == form:
            return owner
        have = self.frames[owner][0] if owner in self.frames else None
        theirs = "none for this layer and form" if have is None else f"for it {_described(have)}"
        raise ValueError(
            f"layer {layer_name!r}: the adapter needs frames of {_described(form)}, and {self.source!r} holds {theirs}"
        )


def read_family(config: LsrConfig) -> Family | None:
    """Return the frames that a configuration names; None if the adapter has its own.

    For an adapter that was read from a folder, a relative path may be relative to that folder or its parent: these come
    first, because the working directory may hold other frames of the same name.

    Raises:
        ValueError: if there is no such adapter, its files are broken, it has no frames of its own or shares them
            differently, or its frames are not the ones that a saved adapter was trained on.
    """
    if config.frames == OWN:
        return None
    source = config.frames
    try:
        theirs, tensors = _read(source, config.folder)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"frames: no LSR adapter can be read from {source!r}: {first_line(error)}") from None
    if theirs.frames != OWN:
        raise ValueError(f"frames: {source!r} holds only a core; its frames are in {theirs.frames!r}: name that")
    if theirs.share != config.share:
        raise ValueError(f"frames: those in {source!r} need share={theirs.share!r}, got {config.share!r}")
    if not tensors:
        raise ValueError(f"frames: {source!r} holds no factors")
    found = frames_hash(tensors)
    expected = config.resolved.frames_hash if config.resolved is not None else None
    if expected is not None and found != expected:
        raise ValueError(
            f"frames: those in {source!r} have the hash {found[:12]}, but the adapter was trained on others, "
            f"{expected[:12]}"
        )
    forms = {name: form_in_file(theirs, name) for name in tensors}
    for name, form in forms.items():
        try:
            _frames(form, theirs.frames_dtype, tensors[name], torch.empty(0))
        except ValueError as error:
            raise ValueError(f"frames: {source!r}: layer {name!r}: {error}") from None
    owners: dict[Owner, tuple[Form, Tensors]] = {}
    for name in tensors:
        owner = _owner(theirs.share, name, forms[name])
        if owner in owners:
            raise ValueError(f"frames: {source!r} holds those of {owner} twice, the second time in layer {name!r}")
        owners[owner] = forms[name], tensors[name]
    sketch = theirs.resolved.base_sketch if theirs.resolved is not None else {}
    return Family(source, theirs.share, theirs.frames_dtype, owners, found, sketch)


def _read(source: str, beside: Path | None) -> tuple[LsrConfig, dict[str, dict[str, Tensor]]]:
    places = [*([] if beside is None else [beside / source, beside.parent / source]), Path(source)]
    folder = next((place for place in places if (place / CONFIG).exists()), None)
    if folder is None and (Path(source).exists() or not HUB_NAME.fullmatch(source)):
        raise ValueError(f"{CONFIG} is missing" if Path(source).exists() else "no such folder")
    path, weights = (_from_hub(source, name) if folder is None else folder / name for name in (CONFIG, WEIGHTS))
    read_fields(path)  # checks its size: PEFT reads a file of any size
    config = LsrConfig.from_pretrained(str(path.parent))
    if not isinstance(config, LsrConfig) or config.resolved is None:
        raise ValueError("it is not a saved LSR adapter")
    tensors: dict[str, dict[str, Tensor]] = {}
    for key, value in read_weights(weights).items():
        layer, infix, name = key.removeprefix(PREFIX).partition(INFIX)
        if infix and name.startswith(PARTS):
            tensors.setdefault(layer, {})[name] = value
    check_room(config, tensors)
    return config, tensors


def _from_hub(repository: str, name: str) -> Path:
    try:
        return Path(hf_hub_download(repository, name))
    except (OSError, ValueError) as error:
        raise ValueError(f"no such folder, and from the hub: {first_line(error)}") from None


def check_room(config: LsrConfig, tensors: Mapping[str, Tensors]) -> None:
    """Refuse, before allocating memory, shapes that need more than the file holds: its author can write any number.

    `tensors` holds the tensors of each layer. Expressions to be matched with the layers' names are checked first.

    Raises:
        ValueError: names the layer or the expression.
    """
    check_expressions(vars(config), tensors)
    if config.resolved is None or config.frames != OWN:
        return  # refused elsewhere, or checked with the file of the frames
    held = sum(map(entries, (tensor for its in tensors.values() for tensor in its.values())))
    for name in tensors:
        form = form_in_file(config, name)
        if not len(form.rank_shape) == len(form.in_shape) == len(form.out_shape):
            continue  # the layer itself raises a better error
        if (needed := form.parameters) > held:
            raise ValueError(f"layer {name!r}: its configuration says {needed:,} entries, but the file holds {held:,}")
        if (used := form.rank * (form.in_width + form.out_width)) > MOST_ENTRIES:
            raise ValueError(f"layer {name!r}: its A and B have {used:,} entries; at most {MOST_ENTRIES:,} are allowed")


def form_in_file(config: LsrConfig, layer_name: str) -> Form:
    """Return the form of a layer of a saved adapter."""
    assert config.resolved is not None
    shapes = config.resolved.layer(layer_name)
    return Form(
        config.ranks(layer_name),
        shapes.in_shape,
        shapes.out_shape,
        config.terms(layer_name),
        shapes.in_features,
        shapes.out_features,
    )


def frames_hash(tensors: Mapping[str, Tensors]) -> str:
    """Return the SHA-256 of frames by layer: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for layer in sorted(tensors):
        for name, value in sorted(tensors[layer].items()):
            own = value.detach().cpu().contiguous()
            digest.update(f"{layer} {name} {own.dtype} {tuple(own.shape)}\n".encode())
            digest.update(own.view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Holders:
    """The modules that hold the factors of an adapter under construction: the first layer of a kind, or a family.

    Frames of a family are registered by hash in the first layer that needs them, so that they move with the model and
    adapters added later find them.
    """

    def __init__(self, config: LsrConfig, layers: Iterable[LsrLayer], family: Family | None) -> None:
        self.config = config
        self.family = family
        self.found: dict[Owner, LsrFactors] = {}
        for layer in layers if family is not None else ():
            for key, frames in layer.lsr_frames.items():
                if family is not None and key == family.sha256:
                    held = cast("LsrFactors", frames)
                    self.found[_owner(family.share, layer.layer_name, held.form)] = held

    def holder(self, layer: LsrLayer) -> LsrFactors | None:
        """Return the holder of a layer's factors; None if the layer gets its own.

        Raises:
            ValueError: if the form does not fit the layer, or the family has no frames of this form; names the layer.
        """
        form = layer.make_form(self.config)
        if self.family is None:
            return self.found.get(kind_of(layer.layer_name, form)) if self.config.share == "layers" else None
        owner = self.family.owner(layer.layer_name, form)
        if owner not in self.found:
            frames = _frames(form, self.family.storage, self.family.frames[owner][1], layer.base_parameter())
            self.found[owner] = layer.lsr_frames[self.family.sha256] = frames
        return self.found[owner]

    def add(self, layer: LsrLayer, adapter_name: str) -> None:
        """If the layer is the first of its kind, let later ones share its factors."""
        adapter = layer.adapter(adapter_name)
        if self.family is None and self.config.share == "layers":
            self.found.setdefault(kind_of(layer.layer_name, adapter.form), adapter)


def drop_unused_frames(layers: Iterable[LsrLayer]) -> None:
    """Remove the frames that no adapter uses any more."""
    layers = list(layers)
    used = {id(layer.adapter(name).frames) for layer in layers for name in layer.lsr_adapters}
    for layer in layers:
        for key, frames in list(layer.lsr_frames.items()):
            if id(frames) not in used:
                del layer.lsr_frames[key]


def _frames(form: Form, storage: str, tensors: Tensors, like: Tensor) -> LsrFactors:
    frames = LsrFactors(form, "core", storage, persistent=False)
    frames.load(tensors, like)
    return frames


def _owner(share: str, layer_name: str, form: Form) -> Owner:
    return kind_of(layer_name, form) if share == "layers" else layer_name


def _described(form: Form) -> str:
    terms = f", separation_rank {form.separation_rank}" if len(form.rank_shape) > 1 else ""
    shapes = f" as {list(form.out_shape)} x {list(form.in_shape)}" if len(form.rank_shape) > 1 else ""
    return f"rank_shape {list(form.rank_shape)}{terms} for {form.out_features} x {form.in_features}{shapes}"
