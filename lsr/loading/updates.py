"""The updates in the files of an adapter of LSR or plain LoRA: what it adds to the weights of layers, in one form."""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from math import isfinite, sqrt
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from torch import Tensor, nn

from lsr.algebra.separable import Form
from lsr.algebra.spectrum import check_rank
from lsr.tuner.adapter import stored_matrices, times_core
from lsr.tuner.config import DIAGONAL, LsrConfig
from lsr.tuner.files import CONFIG, PREFIX, WEIGHTS, Files, factors_by_layer, weights_of
from lsr.tuner.forms import check_room, form_in_file
from lsr.tuner.mistakes import InputError, explained
from lsr.tuner.options import override
from lsr.tuner.sharing import Kind, kind_of

LSR, LORA = "LSR", "LORA"  # PEFT's names of the methods
CORE = "core"
LORA_FACTOR = re.compile(rf"{re.escape(PREFIX)}(.*)\.lora_([AB])\.weight")
# Of a LoRA's configuration: the fields that are read, and those that do not affect the trained update.
KNOWN = (
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "modules_to_save", "lora_dropout"),
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("fan_in_fan_out", "eva_config", "megatron_core", "runtime_config", "qalora_group_size"),
)
UNCHANGED_BASE = (True, False, "gaussian", "orthogonal", "eva")  # initializations that leave the base weight unchanged


class Frames(nn.Module):
    """A (r, n) and B (m, r), which layers of one kind may share: a module, so that moving it keeps them shared."""

    a: Tensor
    b: Tensor

    def __init__(self, *, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.register_buffer("a", a)
        self.register_buffer("b", b)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the weight that they are around: m and n, its outputs and inputs."""
        return len(self.b), self.a.shape[1]

    def equals(self, other: "Frames") -> bool:
        """Return whether these are the same frames, entry by entry."""
        return self is other or (self.a.equal(other.a.to(self.a)) and self.b.equal(other.b.to(self.b)))


class Update(NamedTuple):
    """The update of a layer, scaling * B R A, with A and B from `frames`, and R = 1 if there is no core.

    It has the alpha of its file rather than the scaling, which would not give back every alpha to the last bit.
    """

    frames: Frames
    alpha: float  # of a rank-stabilized LoRA sqrt(r) times its own
    core: Tensor | None = None  # (r, r), or (r,) for a diagonal

    @property
    def divisor(self) -> int:
        """What alpha is divided by: r, or 8 with a diagonal core."""
        return DIAGONAL if self.core is not None and self.core.dim() == 1 else len(self.frames.a)

    @property
    def scaling(self) -> float:
        """The factor before B R A."""
        return self.alpha / self.divisor

    @property
    def form(self) -> Form:
        """The shapes of A and B."""
        m, n = self.frames.shape
        return Form.dense(len(self.frames.a), n, m)

    def plain(self) -> "Update":
        """Return the same update without a core: itself, or folded if it has one."""
        return self if self.core is None else self.folded()

    def folded(self) -> "Update":
        """Return the same update with R A in place of A, and the scaling folded into B."""
        a = self._right()
        return Update(Frames(a=a, b=self.scaling * self.frames.b), len(a))

    def plus(self, other: "Update") -> "Update":
        """Return the sum with another update of the same layer, whose rank is the sum of theirs."""
        first = self.folded().frames
        second = other.folded().frames
        a = torch.cat([first.a, second.a])
        return Update(Frames(a=a, b=torch.cat([first.b, second.b], dim=1)), len(a))

    def product(self) -> tuple[Tensor, Tensor]:  # (m, k), (k, n)
        """Return two matrices in float64 whose product is the update."""
        return self.scaling * self.frames.b.double(), self._right().double()

    def _right(self) -> Tensor:  # R A, (r, n)
        return self.frames.a if self.core is None else times_core(self.core, self.frames.a)


def updates_in(files: Files) -> dict[str, Update]:
    """Return the update of each layer of an adapter of LSR or plain LoRA.

    Of LSR, A and B are the adapter's own if they are dense and it trained only them, or only a core between them.
    Kronecker factors, and a core between trained frames, come as the equal LoRA.

    Raises:
        InputError: if it is neither, or its files are inconsistent; if a LoRA does more than add B A to linear layers.
    """
    if files.method not in (LSR, LORA):
        raise InputError(f"{files.folder}: an adapter of the method {files.method}; needed: {LSR} or {LORA}")
    return _lsr_updates(files) if files.method == LSR else _lora_updates(files)


def check_config(files: Files) -> LsrConfig:
    """Return an LSR adapter's configuration, with its shapes checked before any memory of that size is taken.

    Raises:
        InputError: if a field is wrong, there are no factors, or the shapes need more than the file holds.
    """
    path = files.folder / CONFIG
    with explained(path, ValueError, TypeError, KeyError, AttributeError):
        config = LsrConfig.read(files.fields, files.folder)
    states = factors_by_layer(files.tensors)
    if not states:
        raise InputError(f"{weights_of(files.folder)}: holds no LSR factors")
    if config.resolved is None:
        raise InputError(f"{path}: resolved: the configuration does not contain the shapes of the layers")
    with _fitting(files):
        check_room(config, states)
    return config


def _fitting(files: Files) -> AbstractContextManager[None]:  # or it says in one line how the two files disagree
    where = f"{files.folder}: {WEIGHTS} and {CONFIG} do not fit together"
    return explained(where, ValueError, TypeError, RuntimeError, OverflowError, MemoryError, re.error)


def _lsr_updates(files: Files) -> dict[str, Update]:
    config = check_config(files)
    states = factors_by_layer(files.tensors)
    factors = {name: {key: tensor for key, tensor in state.items() if key != CORE} for name, state in states.items()}
    held: dict[Kind, Frames] = {}
    updates: dict[str, Update] = {}
    for name in sorted(states, key=lambda name: not factors[name]):  # first those that store what others share
        with _fitting(files), explained(f"layer {name!r}", ValueError):
            form = form_in_file(config, name)
            stored = factors[name]
            kind = kind_of(name, form, config.share)
            if stored and kind in held:
                raise ValueError(f"{min(stored)} is no part of this adapter, whose layers share theirs")
            if kind not in held:
                a, b = stored_matrices(form, stored)
                held[kind] = Frames(a=a, b=b)
            updates[name] = _lsr_update(config, name, held[kind], states[name].get(CORE))
    return {name: updates[name] for name in states}


def _lsr_update(config: LsrConfig, name: str, frames: Frames, core: Tensor | None) -> Update:
    rank = len(frames.a)
    needed = ((rank, rank) if config.core == "full" else (rank,)) if config.has_core else None
    shape = None if core is None else tuple(core.shape)
    if shape != needed:
        raise ValueError(f"core is {shape or 'missing'}, needed: {needed or 'none'}")
    update = Update(frames, override(config.alpha_pattern, name, config.alpha), core)
    is_kept = len(config.ranks(name)) == 1 and config.train != "all"
    return update if is_kept else update.folded()


def _lora_updates(files: Files) -> dict[str, Update]:
    usual = vars(LoraConfig())
    sides: dict[str, dict[str, Tensor]] = {}
    for field, value in sorted(files.fields.items()):  # some do more than add B A to the base model's own weights
        is_start = field == "init_lora_weights" and value in UNCHANGED_BASE
        if not (is_start or field in KNOWN or value in (None, False) or value == usual.get(field)):
            needed = "plain LoRA on the base's own weights"
            raise InputError(f"{files.folder}: {field}={value!r} is not supported; needed: {needed}")
    for key, tensor in files.tensors.items():
        match = LORA_FACTOR.fullmatch(key)
        if match and tensor.dim() == 2:
            sides.setdefault(match[1], {})[match[2]] = tensor
        elif ".lora_" in key:
            needed = "is not supported; needed: LoRA of linear layers"
            raise InputError(f"{files.folder}: {key} {tuple(tensor.shape)} {needed}")
    if not sides:
        raise InputError(f"{files.folder}: holds no LoRA factors")
    updates = dict[str, Update]()
    for name, side in sides.items():
        with explained(f"{files.folder}: layer {name!r}", ValueError):
            updates[name] = _lora_update(files.fields, name, side)
    return updates


def _lora_update(lora: Mapping[str, Any], name: str, side: Mapping[str, Tensor]) -> Update:
    if side.keys() != {"A", "B"} or not 0 < len(side["A"]) == side["B"].shape[1]:
        raise ValueError("lora_A and lora_B do not fit together, or one is missing")
    rank = len(side["A"])
    check_rank(rank, len(side["B"]), side["A"].shape[1])
    with explained(f"its rank or alpha in {CONFIG}", re.error, AttributeError, TypeError, OverflowError):
        expected = override(lora.get("rank_pattern") or {}, name, lora.get("r", rank))
        alpha = override(lora.get("alpha_pattern") or {}, name, lora.get("lora_alpha", LoraConfig.lora_alpha))
        if expected != rank:
            raise ValueError(f"has rank {rank}, but its configuration says {expected}")
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not isfinite(alpha):
            raise ValueError(f"its alpha must be a finite number, got {alpha!r}")
    return Update(Frames(a=side["A"], b=side["B"]), alpha / sqrt(rank) * rank if lora.get("use_rslora") else alpha)
