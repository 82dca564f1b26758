"""Adapters of any method on their base models, and the layers of an LSR adapter without one."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from lsr.loading.base_models import MISFITS, load_base
from lsr.tuner.config import LsrConfig
from lsr.tuner.files import CONFIG, WEIGHTS, factors_by_layer, read_config, read_tensors, weights_of
from lsr.tuner.forms import check_room
from lsr.tuner.linear import LsrLinear
from lsr.tuner.mistakes import InputError, first_line
from lsr.tuner.sharing import FrameRegistry, read_shared_frames

METHOD = "LSR"
ADAPTER = "default"
WRAPPED = re.compile(r"\.(modules_to_save|original_module)\.")


class SavedLayers(NamedTuple):
    """The layers of an LSR adapter by name; their base weights are uninitialized."""

    config: LsrConfig
    layers: dict[str, LsrLinear]


def load_adapter(folder: Path, base: str | None = None, method: str | None = METHOD) -> PeftModel:
    """Return an adapter on its base model, in evaluation mode and float32.

    The base model is the one that the adapter names, or `base`, a folder or a hub repository. It gets as many labels as
    the adapter's head.

    Raises:
        InputError: if the folder is not an adapter of this method of PEFT (of any, if None), or the base model does not
            exist or does not fit it.
    """
    fields = _checked_config(folder, method)
    base_model = load_base(fields, read_tensors(folder), base)
    if fields["peft_type"] != METHOD:  # LSR compares the base weight's own bytes; PEFT rounds adapters to its dtype
        base_model = base_model.float()
    return _attach(base_model, folder, trainable=False).float().eval()


def load_onto(base: nn.Module, folder: Path, *, trainable: bool = False) -> PeftModel:
    """Return a base model with the adapter in a folder, of any method of PEFT, on the device of the base model.

    Raises:
        InputError: if the folder is not an adapter, is incomplete, or does not fit the base model.
    """
    _checked_config(folder, None)
    return _attach(base, folder, trainable=trainable)


def _checked_config(folder: Path, method: str | None) -> dict[str, Any]:
    fields = read_config(folder, method)
    if fields["peft_type"] == METHOD:
        load_layers(folder)  # says more than PEFT if the two files do not fit together
    return fields


def _attach(base: nn.Module, folder: Path, *, trainable: bool) -> PeftModel:
    fields, tensors = read_config(folder), read_tensors(folder)
    try:
        with _as_peft_reads(folder, tensors) as readable:
            model = PeftModel.from_pretrained(
                base,
                str(readable),
                is_trainable=trainable,
                config=PEFT_TYPE_TO_CONFIG_MAPPING[fields["peft_type"]].from_pretrained(str(folder)),
                # Do not initialize factors that are about to be loaded, unless it changes the base weight, as PiSSA.
                low_cpu_mem_usage=not isinstance(fields.get("init_lora_weights"), str),
                torch_device=str(next(base.parameters()).device),  # otherwise PEFT picks an accelerator
            )
    except MISFITS as error:
        raise InputError(f"{folder}: does not fit the base model: {misfit(error)}") from None
    try:
        check_saved(model, tensors)
    except ValueError as error:
        raise InputError(f"{weights_of(folder)}: {error}") from None
    return model


@contextmanager
def _as_peft_reads(folder: Path, tensors: Mapping[str, Tensor]) -> Iterator[Path]:
    """Yield a folder whose file PEFT reads: the adapter's own, or if that is rounded, a temporary one."""
    if (folder / WEIGHTS).exists():
        yield folder
        return
    with TemporaryDirectory() as temporary:
        save_file(dict(tensors), Path(temporary, WEIGHTS))
        yield Path(temporary)


def load_layers(folder: Path) -> SavedLayers:
    """Return the layers of an LSR adapter without a base model.

    Raises:
        InputError: if the folder is not an LSR adapter, its file is incomplete, or its two files do not fit together.
    """
    read_config(folder, METHOD)
    config, states = _config(folder), factors_by_layer(read_tensors(folder))
    if not states:
        raise InputError(f"{weights_of(folder)}: holds no LSR factors")
    # If factors are shared, the layer that stores them comes first, as in a model.
    first = sorted(states, key=lambda name: not any(key.startswith("factor_") for key in states[name]))
    try:
        check_room(config, states)
        frames = FrameRegistry(config, (), read_shared_frames(config))
        made = {name: _layer(name, config, frames, states[name]) for name in first}
    except (ValueError, TypeError, RuntimeError, OverflowError, MemoryError, re.error) as error:
        raise InputError(f"{folder}: {WEIGHTS} and {CONFIG} do not fit together: {first_line(error)}") from None
    return SavedLayers(config, {name: made[name] for name in states})


def _config(folder: Path) -> LsrConfig:
    try:
        config = LsrConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{folder / CONFIG}: {first_line(error)}") from None
    assert isinstance(config, LsrConfig)
    return config


def _layer(name: str, config: LsrConfig, frames: FrameRegistry, state: Mapping[str, Tensor]) -> LsrLinear:
    if config.resolved is None:
        raise ValueError("resolved: the configuration does not contain the shapes of the layers")
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


def check_saved(model: PeftModel, names: Iterable[str]) -> None:
    """Check that a file holds exactly the tensors of a model's adapter, head and biases, for any method.

    PEFT checks their shapes alone.

    Raises:
        ValueError: names the first tensor that is missing or unexpected, or is of whole numbers.
    """
    for name, parameter in model.named_parameters():
        if parameter.dtype is torch.int64:  # a head's: the model has taken the file's own tensor
            raise ValueError(f"{name.replace('.default', '')} holds int64 values; needed: floating-point ones")
    state: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    # With bias="all" PEFT also lists the biases inside the wrapper of a head.
    expected, held = ({name for name in side if not WRAPPED.search(name)} for side in (state, names))
    for name in sorted(expected ^ held):
        raise ValueError(
            f"{name} {'is missing' if name in expected else 'is no part of this adapter on this base model'}"
        )


def misfit(error: BaseException) -> str:
    """Return a message for PEFT's error on a file that does not fit: a KeyError is a missing tensor of a head."""
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing" if error.args else "a tensor is missing"
    return first_line(error)
