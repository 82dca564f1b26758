"""What layers or adapters share: the frames of all layers of a kind, or those of an adapter in another folder."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor

from lsr.algebra.shapes import Form
from lsr.tuner.adapter import LsrFactors, check_factors
from lsr.tuner.config import LsrConfig
from lsr.tuner.files import CONFIG, adapter_folder, factors_by_layer, read_config, read_tensors
from lsr.tuner.forms import check_room, form_of
from lsr.tuner.layer import LsrLinear
from lsr.tuner.mistakes import first_line
from lsr.tuner.options import OWN

INDEX = re.compile(r"(?<![^.])\d+(?![^.])")


class Kind(NamedTuple):
    """What layers that differ only in their index have in common: the name without indices, and the shapes."""

    pattern: str
    form: Form

    def __str__(self) -> str:
        """Return the pattern and the widths."""
        return f"{self.pattern} ({self.form.out_features} x {self.form.in_features})"


def kind_of(layer_name: str, form: Form) -> Kind:
    """Return the kind of a layer: `encoder.layer.*.attention.self.query` of `encoder.layer.3.attention.self.query`."""
    return Kind(INDEX.sub("*", layer_name), form)


Group = Kind | str  # a kind, whose layers share their frames, or the name of a layer
Tensors = Mapping[str, Tensor]  # factor_A1 and so on


def group_of(config: LsrConfig, layer_name: str, form: Form) -> Group:
    """Return the group of layers that have the frames of a layer."""
    return kind_of(layer_name, form) if config.share == "layers" else layer_name


@dataclass(frozen=True)
class SharedFrames:
    """The frames in another adapter's folder, by group of layers."""

    source: str
    frames: Mapping[Group, tuple[Form, Tensors]]
    sha256: str

    def of(self, config: LsrConfig, layer_name: str, form: Form) -> Tensors:
        """Return the frames that a layer of an adapter uses.

        Raises:
            ValueError: if there are no frames of the layer's form; names the layer.
        """
        held, tensors = self.frames.get(group_of(config, layer_name, form), (None, {}))
        if held == form:
            return tensors
        theirs = "none for this layer and form" if held is None else f"for it {_described(held)}"
        raise ValueError(
            f"layer {layer_name!r}: the adapter needs frames of {_described(form)}, and {self.source!r} holds {theirs}"
        )


def _described(form: Form) -> str:
    return f"rank_shape {list(form.rank_shape)} for {form.out_features} x {form.in_features}"


def read_shared_frames(config: LsrConfig) -> SharedFrames | None:
    """Return the frames that a configuration names; None if the adapter has its own.

    For an adapter that was read from a folder, a relative path may be relative to that folder or its parent: these come
    first, because the working directory may hold other frames of the same name.

    Raises:
        ValueError: if there is no such adapter, its files are broken, it has no frames of its own or shares them
            differently, or its frames are not the ones that a saved adapter was trained on.
    """
    source, resolved = config.frames, config.resolved
    if source == OWN:
        return None
    try:
        theirs, tensors, forms = _read(source, config.folder)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, re.error) as error:
        raise ValueError(f"frames: no LSR adapter can be read from {source!r}: {first_line(error)}") from None
    if theirs.frames != OWN:
        raise ValueError(f"frames: {source!r} holds only a core; its frames are in {theirs.frames!r}: name that")
    if theirs.share != config.share:
        raise ValueError(f"frames: those in {source!r} need share={theirs.share!r}, got {config.share!r}")
    if not tensors:
        raise ValueError(f"frames: {source!r} holds no factors")
    sha256 = frames_hash(tensors)
    if resolved is not None and resolved.frames_hash not in (None, sha256):
        raise ValueError(
            f"frames: those in {source!r} have the hash {sha256[:12]}, but the adapter was trained on others, "
            f"{resolved.frames_hash[:12]}"
        )
    for name, its in tensors.items():
        try:
            check_factors(forms[name], its)
        except ValueError as error:
            raise ValueError(f"frames: {source!r}: layer {name!r}: {error}") from None
    by_group = {group_of(theirs, name, forms[name]): (forms[name], its) for name, its in tensors.items()}
    return SharedFrames(source, by_group, sha256)


def _read(source: str, beside: Path | None) -> tuple[LsrConfig, dict[str, Tensors], dict[str, Form]]:
    """Return an adapter's configuration, and its frames and their forms by layer.

    Raises:
        ValueError: if its configuration has no shapes.
    """
    places = [*([] if beside is None else [beside / source, beside.parent / source]), Path(source)]
    folder = next((place for place in places if (place / CONFIG).exists()), None) or adapter_folder(source)
    read_config(folder, "LSR")  # within bounds, which PEFT's own reader does not have
    config = LsrConfig.from_pretrained(str(folder))
    if config.resolved is None:
        raise ValueError("resolved: the configuration does not contain the shapes of the layers")
    tensors = dict[str, Tensors]()
    for layer, its in factors_by_layer(read_tensors(folder)).items():
        if frames := {name: value for name, value in its.items() if name.startswith("factor_")}:
            tensors[layer] = frames
    return config, tensors, check_room(config, tensors)


def frames_hash(tensors: Mapping[str, Tensors]) -> str:
    """Return the SHA-256 of frames by layer: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for layer in sorted(tensors):
        for name, value in sorted(tensors[layer].items()):
            own = value.detach().cpu().contiguous()
            digest.update(f"{layer} {name} {own.dtype} {tuple(own.shape)}\n".encode())
            digest.update(own.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class FrameRegistry:
    """The frames that layers of an adapter under construction share: of the first of a kind, or of another folder.

    Frames from a folder are registered by hash in the first layer that needs them, so that they move with the model and
    adapters added later find them.
    """

    def __init__(self, config: LsrConfig, layers: Iterable[LsrLinear], shared: SharedFrames | None) -> None:
        self.config = config
        self.shared = shared
        self._frames: dict[Group, LsrFactors] = {}
        for layer in layers:
            if shared is not None and shared.sha256 in layer.lsr_frames:
                held = cast("LsrFactors", layer.lsr_frames[shared.sha256])
                self._frames[group_of(config, layer.layer_name, held.form)] = held

    def update(self, layer: LsrLinear, adapter_name: str) -> None:
        """Add the adapter to a layer, with the frames of its group if there are any, else with its own."""
        form = form_of(self.config, layer.layer_name, layer.in_features, layer.out_features)
        group = group_of(self.config, layer.layer_name, form)
        if self.shared is not None and group not in self._frames:
            frames = LsrFactors(form, layer.base_parameter(), persistent=False)
            frames.load(self.shared.of(self.config, layer.layer_name, form))
            self._frames[group] = layer.lsr_frames[self.shared.sha256] = frames
        layer.update_layer(adapter_name, self.config, self._frames.get(group))
        self._frames.setdefault(group, layer.adapter(adapter_name))


def drop_unused_frames(layers: Iterable[LsrLinear]) -> None:
    """Remove the frames that no adapter uses any more."""
    layers = list(layers)
    used = {id(layer.adapter(name).frames) for layer in layers for name in layer.lsr_adapters}
    for layer in layers:
        for key, frames in list(layer.lsr_frames.items()):
            if id(frames) not in used:
                del layer.lsr_frames[key]
