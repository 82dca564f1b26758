"""Read the updates that an LSR or plain LoRA adapter adds to the weights of layers, in one form."""

import re
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from math import isfinite, sqrt
from typing import NamedTuple, Self

import torch
from peft import LoraConfig
from torch import Tensor, nn

from lsr.algebra.separable import FactorShapes, Shape
from lsr.algebra.spectrum import Pair, check_rank
from lsr.errors import InputError, wrap_errors
from lsr.loading.fields import PLACING
from lsr.tuner.adapter import build_matrices, times_core
from lsr.tuner.config import DIAGONAL, LsrConfig
from lsr.tuner.files import CONFIG, PREFIX, WEIGHTS, Files, factors_by_layer, weights_of
from lsr.tuner.forms import check_room, form_in_file
from lsr.tuner.options import Fields, override
from lsr.tuner.packing import Tensors
from lsr.tuner.sharing import LayerGroup, layer_group_of

# PEFT's names of the methods.
LSR = "LSR"
LORA = "LORA"
CORE = "core"
LORA_FACTOR = re.compile(rf"{re.escape(PREFIX)}(.*)\.lora_([AB])\.weight")
# Of a LoRA's configuration: the fields that are read, and those that do not affect the trained update.
KNOWN = (
    *PLACING,
    "r",
    "lora_alpha",
    "use_rslora",
    "lora_dropout",
    "eva_config",
    "megatron_core",
    "runtime_config",
    "qalora_group_size",
)
EMPTY = torch.empty(0, 0)  # stands for a missing factor
UNCHANGED_BASE = (True, False, "gaussian", "orthogonal", "eva")  # initializations that leave the base weight unchanged


Change = Callable[[Tensor], Tensor]  # changes a tensor, for example by a copy to another device


class Bases(nn.Module):
    """A (r, n) and B (m, r), which layers of one group may share; a module, so that moving it keeps them shared.

    Its dtype stays when the model around it is converted to another.
    """

    a: Tensor
    b: Tensor

    def __init__(self, *, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.register_buffer("a", a)
        self.register_buffer("b", b)

    def _apply(self, fn: Change, recurse: bool = True) -> Self:
        device = find_device(fn, self.a)
        return super()._apply(lambda tensor: tensor.to(device), recurse)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape (m, n) of the adapted weight: outputs and inputs."""
        return len(self.b), self.a.shape[1]

    def equals(self, other: "Bases") -> bool:
        """Return whether all entries are equal."""
        if self is other:
            return True
        if not self.a.equal(other.a.to(self.a)):
            return False
        return self.b.equal(other.b.to(self.b))


def find_device(change: Change, tensor: Tensor) -> torch.device:
    """Return the device to which a change moves a tensor; needs no memory."""
    return change(tensor.new_empty(0)).device


class Update(NamedTuple):
    """The update of a layer, scaling * B R A, with A and B in `bases` and R the core; R = 1 without one.

    It stores the file's alpha rather than the scaling, from which alpha could not always be restored exactly.
    """

    bases: Bases
    alpha: float  # LoRA's alpha; for a rank-stabilized LoRA, sqrt(r) times it
    core: Tensor | None = None  # (r, r), or (r,) for a diagonal

    @property
    def divisor(self) -> int:
        """The divisor of alpha: r, or 8 with a diagonal core."""
        if self.core is not None and self.core.dim() == 1:
            return DIAGONAL
        return len(self.bases.a)

    @property
    def scaling(self) -> float:
        """The factor before B R A."""
        return self.alpha / self.divisor

    @property
    def form(self) -> FactorShapes:
        """The shapes of A and B."""
        m, n = self.bases.shape
        return FactorShapes.dense(len(self.bases.a), n, m)

    def plain(self) -> "Update":
        """Return the same update without a core: itself, or with the core folded into A."""
        if self.core is None:
            return self
        return self.fold()

    def fold(self) -> "Update":
        """Return the same update with A replaced by R A, and the scaling folded into B."""
        a = self._right()
        b = self.scaling * self.bases.b
        return Update(Bases(a=a, b=b), len(a))

    def plus(self, other: "Update") -> "Update":
        """Return the sum with another update of the same layer; ranks add up."""
        first = self.fold().bases
        second = other.fold().bases
        a = torch.cat([first.a, second.a])
        b = torch.cat([first.b, second.b], dim=1)
        return Update(Bases(a=a, b=b), len(a))

    def product(self) -> Pair:  # (m, k), (k, n)
        """Return two matrices in float64 whose product is the update."""
        return self.scaling * self.bases.b.double(), self._right().double()

    def _right(self) -> Tensor:  # R A, (r, n)
        if self.core is None:
            return self.bases.a
        return times_core(self.core, self.bases.a)


Updates = dict[str, Update]  # updates by name of the layer


def updates_in(files: Files) -> Updates:
    """Return the update of each layer of an LSR or plain LoRA adapter; none if it is a head alone.

    LSR adapters with dense A and B, or with a core between frozen bases, are returned as stored; all other forms as
    the equivalent LoRA.

    Raises:
        InputError: if it is another method, or its files are inconsistent; if a LoRA does more than add B A to linear
            layers.
    """
    if files.method == LSR:
        return _lsr_updates(files)
    if files.method == LORA:
        return _lora_updates(files)
    raise InputError(f"{files.folder}: an adapter of the method {files.method}; needed: {LSR} or {LORA}")


def check_config(files: Files) -> LsrConfig:
    """Return an LSR adapter's configuration after checking its shapes, before memory of that size is allocated.

    Raises:
        InputError: if a field is invalid, there are no factors, or the shapes need more entries than the file has.
    """
    path = files.folder / CONFIG
    with wrap_errors(path, ValueError, TypeError, KeyError, AttributeError):
        config = LsrConfig.read(files.fields, files.folder)
    states = factors_by_layer(files.tensors)
    if not states:
        raise InputError(f"{weights_of(files.folder)}: holds no LSR factors")
    if config.resolved is None:
        raise InputError(f"{path}: resolved: the configuration does not contain the shapes of the layers")
    with _wrap_mismatches(files):
        check_room(config, states)
    return config


def _wrap_mismatches(files: Files) -> AbstractContextManager[None]:  # reports in one line how the two files disagree
    where = f"{files.folder}: {WEIGHTS} and {CONFIG} do not fit together"
    return wrap_errors(where, ValueError, TypeError, RuntimeError, OverflowError, MemoryError, re.error)


def _lsr_updates(files: Files) -> Updates:
    config = check_config(files)
    states = factors_by_layer(files.tensors)
    cores = {name: state.pop(CORE, None) for name, state in states.items()}
    held: dict[LayerGroup, Bases] = {}
    updates = {}
    for name in sorted(states, key=lambda name: not states[name]):  # first those that store what others share
        stored = states[name]
        with _wrap_mismatches(files), wrap_errors(f"layer {name!r}", ValueError):
            form = form_in_file(config, name)
            layer_group = layer_group_of(name, form, config.share)
            if stored and layer_group in held:
                raise ValueError(f"{min(stored)} is not part of this adapter, whose layers share theirs")
            if layer_group not in held:
                a, b = build_matrices(form, stored)
                held[layer_group] = Bases(a=a, b=b)
            updates[name] = _lsr_update(config, name, held[layer_group], cores[name])
    return {name: updates[name] for name in states}


def _lsr_update(config: LsrConfig, name: str, bases: Bases, core: Tensor | None) -> Update:
    needed: Shape | None = None
    if config.has_core:
        rank = len(bases.a)
        needed = (rank, rank) if config.core == "full" else (rank,)
    shape = None if core is None else tuple(core.shape)
    if shape != needed:
        raise ValueError(f"core is {shape or 'missing'}, needed: {needed or 'none'}")
    alpha = override(config.alpha_pattern, name, config.alpha)
    update = Update(bases, alpha, core)
    if config.train == "all" or len(config.ranks(name)) > 1:
        return update.fold()
    return update


def _check_plain(files: Files) -> None:
    # Some fields of a LoRA do more than add B A to the base model's own weights.
    usual = vars(LoraConfig())
    for field, value in sorted(files.fields.items()):
        is_start = field == "init_lora_weights" and value in UNCHANGED_BASE
        # For a mixture of experts PEFT writes an empty list of adapted parameters.
        if is_start or field in KNOWN or value in (None, False, [], usual.get(field)):
            continue
        needed = "plain LoRA on the base's own weights"
        raise InputError(f"{files.folder}: {field}={value!r} is not supported; needed: {needed}")


def _lora_updates(files: Files) -> Updates:
    _check_plain(files)
    sides = defaultdict[str, dict[str, Tensor]](dict)
    for key, tensor in files.tensors.items():
        match = LORA_FACTOR.fullmatch(key)
        if match and tensor.dim() == 2:
            sides[match[1]][match[2]] = tensor
        elif ".lora_" in key:
            needed = "is not supported; needed: LoRA of linear layers"
            raise InputError(f"{files.folder}: {key} {tuple(tensor.shape)} {needed}")
    updates = {}
    for name, side in sides.items():
        with wrap_errors(f"{files.folder}: layer {name!r}", ValueError):
            updates[name] = _lora_update(files.fields, name, side)
    return updates


def _lora_update(lora: Fields, name: str, side: Tensors) -> Update:
    bases = Bases(a=side.get("A", EMPTY), b=side.get("B", EMPTY))
    rank = len(bases.a)
    if not 0 < rank == bases.b.shape[1]:
        raise ValueError("lora_A and lora_B do not fit together, or one is missing")
    check_rank(rank, *bases.shape)
    with wrap_errors(f"its rank or alpha in {CONFIG}", re.error, AttributeError, TypeError, OverflowError):
        expected = override(lora.get("rank_pattern") or {}, name, lora.get("r", rank))
        alpha = override(lora.get("alpha_pattern") or {}, name, lora.get("lora_alpha", LoraConfig.lora_alpha))
        if expected != rank:
            raise ValueError(f"has rank {rank}, but its configuration has {expected}")
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not isfinite(alpha):
            raise ValueError(f"its alpha must be a finite number, got {alpha!r}")
    if lora.get("use_rslora"):
        alpha = alpha / sqrt(rank) * rank
    return Update(bases, alpha)
