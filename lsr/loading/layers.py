"""The layers of an LSR adapter, without its base model."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lsr.tuner.config import LsrConfig
from lsr.tuner.files import CONFIG, WEIGHTS, Files, factors_by_layer, weights_of
from lsr.tuner.forms import check_room
from lsr.tuner.linear import LsrLinear
from lsr.tuner.mistakes import InputError, first_line
from lsr.tuner.sharing import FrameRegistry, read_shared_frames

METHOD = "LSR"
ADAPTER = "default"


class SavedLayers(NamedTuple):
    """The layers of an LSR adapter by name; their base weights are uninitialized."""

    config: LsrConfig
    layers: dict[str, LsrLinear]


def load_layers(files: Files) -> SavedLayers:
    """Return the layers of an LSR adapter without a base model.

    Raises:
        InputError: if its file is incomplete, or its two files do not fit together.
    """
    config, states = check_shapes(files), factors_by_layer(files.tensors)
    # If factors are shared, the layer that stores them comes first, as in a model.
    first = sorted(states, key=lambda name: not any(key.startswith("factor_") for key in states[name]))
    with _fitting(files):
        frames = FrameRegistry(config, (), read_shared_frames(config))
        made = {name: _layer(name, config, frames, states[name]) for name in first}
    return SavedLayers(config, {name: made[name] for name in states})


def check_shapes(files: Files) -> LsrConfig:
    """Return an LSR adapter's configuration, whose shapes have been checked before anything of that size is made.

    Raises:
        InputError: if a field is wrong, there are no factors, or the shapes need more than the file holds.
    """
    try:
        config = LsrConfig.from_peft_type(**deepcopy(files.fields))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{files.folder / CONFIG}: {first_line(error)}") from None
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


@contextmanager
def _fitting(files: Files) -> Iterator[None]:
    """Say in one line what does not fit.

    Raises:
        InputError: in place of another error.
    """
    try:
        yield
    except (ValueError, TypeError, RuntimeError, OverflowError, MemoryError, re.error) as error:
        raise InputError(f"{files.folder}: {WEIGHTS} and {CONFIG} do not fit together: {first_line(error)}") from None


def _layer(name: str, config: LsrConfig, frames: FrameRegistry, state: Mapping[str, Tensor]) -> LsrLinear:
    assert config.resolved is not None
    shapes = config.resolved.layer(name)
    base = torch.nn.utils.skip_init(nn.Linear, shapes.in_features, shapes.out_features, bias=False)
    layer = LsrLinear(base, ADAPTER, name)
    layer.update_layer(ADAPTER, config, frames.frames_of(layer))
    frames.add(layer, ADAPTER)
    try:
        layer.adapter(ADAPTER).load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"layer {name!r}: {first_line(error)}") from None
    return layer
