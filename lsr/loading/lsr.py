"""The updates in the files of an LSR adapter."""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from copy import deepcopy
from math import isfinite

from torch import Tensor

from lsr.loading.update import Frames, Update
from lsr.tuner.adapter import stored_matrices
from lsr.tuner.config import LsrConfig
from lsr.tuner.files import CONFIG, WEIGHTS, Files, factors_by_layer, weights_of
from lsr.tuner.forms import Group, check_room, form_in_file, group_of
from lsr.tuner.mistakes import InputError, explained
from lsr.tuner.options import override

LSR = "LSR"  # PEFT's name of the method
CORE = "core"


def check_config(files: Files) -> LsrConfig:
    """Return an LSR adapter's configuration, with its shapes checked before any memory of that size is taken.

    Raises:
        InputError: if a field is wrong, there are no factors, or the shapes need more than the file holds.
    """
    with explained(files.folder / CONFIG, ValueError, TypeError, KeyError, AttributeError):
        config = LsrConfig.from_peft_type(**deepcopy(files.fields))
    assert isinstance(config, LsrConfig)
    config.folder = files.folder
    states = factors_by_layer(files.tensors)
    if not states:
        raise InputError(f"{weights_of(files.folder)}: holds no LSR factors")
    if config.resolved is None:
        path = files.folder / CONFIG
        raise InputError(f"{path}: resolved: the configuration does not contain the shapes of the layers")
    with _fitting(files):
        check_room(config, states)
    return config


def lsr_updates(files: Files) -> dict[str, Update]:
    """Return the update of each layer.

    A and B are the adapter's own if they are dense and it trained only them, or only a core between them. Kronecker
    factors, and a core between trained frames, come as the equal LoRA.
    """
    config, states = check_config(files), factors_by_layer(files.tensors)
    with _fitting(files):
        frames = _frames(config, states)
        return {name: _update(config, name, frames[name], state.get(CORE)) for name, state in states.items()}


def _frames(config: LsrConfig, states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Frames]:
    """Return A and B of each layer, the same object where they are shared.

    Raises:
        ValueError: if factors are missing, twice in a group, or of other shapes than the configuration says.
    """
    held, found = dict[Group, Frames](), dict[str, Frames]()
    factors = {name: {key: its for key, its in state.items() if key != CORE} for name, state in states.items()}
    for name in sorted(states, key=lambda name: not factors[name]):  # first those that store what others share
        form, stored = form_in_file(config, name), factors[name]
        group = group_of(config, name, form)
        if stored and group in held:
            raise ValueError(f"layer {name!r}: {min(stored)} is no part of this adapter, whose layers share theirs")
        if group not in held:
            with explained(f"layer {name!r}", ValueError):
                a, b = stored_matrices(form, stored)
            held[group] = Frames(a=a, b=b)
        found[name] = held[group]
    return found


def _update(config: LsrConfig, name: str, frames: Frames, core: Tensor | None) -> Update:
    rank = len(frames.a)
    needed = ((rank, rank) if config.core == "full" else (rank,)) if config.has_core else None
    shape = None if core is None else tuple(core.shape)
    if shape != needed:
        raise ValueError(f"layer {name!r}: core is {shape or 'missing'}, needed: {needed or 'none'}")
    update = Update(frames, override(config.alpha_pattern, name, config.alpha), core)
    if not isfinite(update.scaling):
        raise ValueError(f"layer {name!r}: its alpha must be a finite number, got {update.alpha!r}")
    is_kept = len(config.ranks(name)) == 1 and config.train != "all"
    return update if is_kept else update.folded()


def _fitting(files: Files) -> AbstractContextManager[None]:  # or it says in one line how the two files disagree
    where = f"{files.folder}: {WEIGHTS} and {CONFIG} do not fit together"
    return explained(where, ValueError, TypeError, RuntimeError, OverflowError, MemoryError, re.error)
