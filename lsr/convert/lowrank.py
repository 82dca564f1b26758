"""Convert an adapter of any PEFT method to LoRA: the SVD of the merged weight minus the base weight."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lsr.algebra.spectrum import full_svd
from lsr.convert.relative_errors import Norms, norms_of
from lsr.errors import InputError
from lsr.loading.adapters import load_onto, merge_adapter
from lsr.loading.base_models import load_base
from lsr.loading.contents import BASE_FIELDS, Contents, read_task
from lsr.loading.updates import Bases, Update, Updates
from lsr.tuner.files import Files
from lsr.tuner.packing import Tensors
from lsr.tuner.targets import ADAPTABLE

# The part of an update, relative to its norm, that the factors of a layer may lack; rounding them adds less than that.
NEGLIGIBLE = 5e-7
WEIGHT = ".weight"
BIAS = ".bias"  # the end of the name of a bias, by PEFT's rule: a table of relative_attention_bias is none


class Merged(NamedTuple):
    """A base model with an adapter merged into it, in float64."""

    model: Any
    before: Tensors  # the state of the base model alone
    state: Tensors

    def has_changed(self, name: str) -> bool:
        """Return whether a tensor differs from the base model's."""
        return not torch.equal(self.state[name], self.before[name].to(self.state[name].dtype))

    def difference(self, layer: str) -> Tensor:  # (m, n)
        """Return the update of a layer's weight: after the merge minus before it, in float64."""
        name = f"{layer}{WEIGHT}"
        difference = self.state[name] - self.before[name].double()
        return difference.T if self.is_transposed(layer) else difference

    def is_transposed(self, layer: str) -> bool:
        """Return whether a layer stores its weight as (n, m)."""
        return isinstance(self.model.get_submodule(layer), Conv1D)


class Spectrum(NamedTuple):
    """The singular value decomposition of a layer's update."""

    left: Tensor  # (m, k)
    values: Tensor  # (k,), the largest first
    right: Tensor  # (k, n)
    rank: int  # beyond which the rest is negligible

    @property
    def is_low_rank(self) -> bool:
        """Whether factors of this rank have fewer entries than the layer's weight."""
        m = len(self.left)
        n = self.right.shape[1]
        return self.rank * (m + n) < m * n

    def truncate(self, rank: int) -> Update:
        """Return the nearest update of this rank."""
        roots = self.values[:rank].sqrt()
        a = roots[:, None] * self.right[:rank]
        b = self.left[:, :rank] * roots
        return Update(Bases(a=a, b=b), rank)


def read_lowrank(
    files: Files,
    base: str | None = None,
    rank: int | None = None,
) -> tuple[Contents, Updates]:
    """Read an adapter of any PEFT method as a LoRA in float64, with its full updates.

    `base` is the base model; by default the one that the adapter names. Each layer gets the smallest rank with a
    negligible error, at most `rank`.

    Raises:
        InputError: if PEFT cannot merge it, it changes more than linear layers, biases and its head, or, without
            `rank`, its factors would be larger than a layer's weight; names the rank needed.
    """
    merged = merge(files, base)
    contents, layers = _read_rest(files, merged)
    spectra = {layer: _decompose(files, layer, merged.difference(layer)) for layer in layers}
    if rank is None:
        _check_low_rank(files, spectra)
    updates = {}
    exact = {}
    for layer, spectrum in spectra.items():
        updates[layer] = spectrum.truncate(min(rank or spectrum.rank, spectrum.rank))
        exact[layer] = spectrum.truncate(len(spectrum.values))
    return replace(contents, updates=updates), exact


def _read_rest(files: Files, merged: Merged) -> tuple[Contents, list[str]]:
    """Return the contents of an adapter without its updates, and the names of the updated layers."""
    modules = dict(merged.model.named_modules())
    contents = _read_description(files, modules)
    heads = _take_heads(contents.fully_trained_modules(modules), merged.state)
    changed = _list_changed(merged, heads)
    layers = _name_layers(files, modules, changed)
    has_biases = any(name.endswith(BIAS) for name in changed)
    if has_biases:
        heads |= _take_biases(layers, merged.state, heads)
    rest = replace(
        contents,
        heads=heads,
        bias="all" if has_biases else "none",
        is_transposed=any(map(merged.is_transposed, layers)),
    )
    return rest, layers


def measure_merge(
    files: Files,
    merged: Merged,
    dtype: torch.dtype,
) -> dict[str, Norms]:
    """Return the norms of the rounding in a dtype and of the update, for each changed tensor that is not of a head."""
    modules = dict(merged.model.named_modules())
    heads = _take_heads(_read_description(files, modules).fully_trained_modules(modules), merged.state)
    norms = {}
    for name in _list_changed(merged, heads):
        exact = merged.state[name]
        rounding = exact.to(dtype).double() - exact
        update = exact - merged.before[name].double()
        norms[name.removesuffix(WEIGHT)] = norms_of(rounding, update)
    return norms


def _read_description(files: Files, modules: dict[str, nn.Module]) -> Contents:
    """Return the contents of an adapter without its tensors."""
    return Contents(
        source=str(files.folder),
        base={name: files.fields.get(name) for name in BASE_FIELDS},
        updates={},
        heads={},
        endings=tuple(files.fields.get("modules_to_save") or ()),
        task=read_task(files.folder),
        modules=list(modules),
    )


def _list_changed(merged: Merged, heads: Tensors) -> list[str]:
    """Return the names of the base model's tensors, but for those of heads, that a merge has changed."""
    changed = []
    for name in merged.before:
        if name not in heads and merged.has_changed(name):
            changed.append(name)
    return changed


def merge(files: Files, base: str | None) -> Merged:
    """Load an adapter of any PEFT method onto its base model, or onto `base`, and merge it in float64.

    Raises:
        InputError: as `load_base`, `load_onto` and `merge_adapter`.
    """
    model = load_base(files.fields, files.tensors, base)
    before = {name: value.clone() for name, value in model.state_dict().items()}  # some methods change the base, too
    merged = merge_adapter(load_onto(model, files).double(), files)
    return Merged(merged, before, merged.state_dict())


def _take_heads(modules: Collection[str], state: Tensors) -> dict[str, Tensor]:
    inside = tuple(f"{module}." for module in modules)
    return {name: value for name, value in state.items() if name.startswith(inside)}


def _name_layers(
    files: Files,
    modules: dict[str, nn.Module],
    changed: Collection[str],
) -> list[str]:
    """Return the linear layers whose weights an adapter has changed.

    Raises:
        InputError: if there are none, or it has changed other tensors than these and biases.
    """
    layers = []
    for name in changed:
        layer = name.removesuffix(WEIGHT)
        if layer != name and isinstance(modules.get(layer), ADAPTABLE):
            layers.append(layer)
        elif not name.endswith(BIAS):
            reason = "which is not a weight of a linear layer, so a LoRA cannot hold it"
            raise InputError(f"{files.folder}: {files.method} changes {name}, {reason}")
    if not layers:
        raise InputError(f"{files.folder}: {files.method} changes no weight of a linear layer, so there is no LoRA")
    return layers


def _take_biases(
    layers: Collection[str],
    state: Tensors,
    heads: Tensors,
) -> Tensors:
    """Return all biases in the form in which PEFT stores a LoRA's trained biases."""
    biases = {}
    for name, value in state.items():
        if not name.endswith(BIAS) or name in heads:
            continue
        module, _, last = name.rpartition(".")
        biases[f"{module}.base_layer.{last}" if module in layers else name] = value
    return biases


def _decompose(
    files: Files,
    layer: str,
    update: Tensor,
) -> Spectrum:
    if not update.isfinite().all():
        raise InputError(f"{files.folder}: the update of {layer} is not finite")
    left, values, right = full_svd(update)
    tails = values.square().flip(0).cumsum(0).flip(0).sqrt()  # the norm of what is left out before each value
    rank = int((tails > NEGLIGIBLE * tails[0]).sum())
    return Spectrum(left, values, right, rank)


def _check_low_rank(files: Files, spectra: dict[str, Spectrum]) -> None:
    large = [layer for layer, spectrum in spectra.items() if not spectrum.is_low_rank]
    if not large:
        return
    needed = max(spectrum.rank for spectrum in spectra.values())
    spectrum = spectra[large[0]]
    size = f"{len(spectrum.left)} x {spectrum.right.shape[1]}"
    reason = f"the update of {large[0]} ({size}) needs rank {spectrum.rank}, at which a LoRA is larger than the weight"
    raise InputError(
        f"{files.folder}: {files.method}: {reason}; --rank {needed} writes all layers whole, a smaller rank in part"
    )
