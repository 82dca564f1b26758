"""Load an LSR adapter's folder as a PEFT model on its base model, or just its layers without a base model."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn

from lsr.algebra.precision import dtype_name
from lsr.convert.base_model import EXPLAINED, by, empty_base, load_base
from lsr.convert.files import FACTOR, InputError, NoBaseError, read_config, read_tensors
from lsr.tuner.config import LsrConfig
from lsr.tuner.expressions import check_expressions
from lsr.tuner.family import Family, Holders, check_room, read_family
from lsr.tuner.linear import LsrLinear, adapted_layers
from lsr.tuner.saved import CONFIG, WEIGHTS, check_saved, first_line, misfit

METHOD = "LSR"
ADAPTER = "default"


def load_adapter(folder: Path, base: str | None = None) -> PeftModel:
    """Return an adapter on its base model, in evaluation mode and float32.

    The base is the one that the adapter names, or `base`, a folder or a hub repository. It gets as many labels as the
    adapter's head.

    Raises:
        InputError: if the folder is not an LSR adapter, or the base model does not exist or does not fit it.
    """
    fields, tensors, config = read_config(folder, METHOD), read_tensors(folder), load_config(folder)
    _check_layers(folder, empty_base(fields, base), config, list(made_layers(folder, config, tensors)))
    model = load_base(fields, tensors, base)
    adapted = _on_base(model, folder, tensors)
    adapted.float().eval()
    for layer in adapted_layers(adapted).values():
        layer.settle()  # a folded initial update was rounded to the dtype of the base
    return adapted


def load_lora(folder: Path, base: str | None = None) -> PeftModel:
    """Return an exported LoRA on its base model, as plain PEFT loads it, in evaluation mode and float32.

    Raises:
        InputError: if the folder is not a LoRA adapter, or the base model does not exist or does not fit it.
    """
    fields, tensors = read_config(folder, "LORA"), read_tensors(folder)
    model = load_base(fields, tensors, base).float()
    try:
        check_expressions(fields, [name for name, _ in model.named_modules()])
    except ValueError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from None
    return _on_base(model, folder, tensors).float().eval()


def _on_base(base: nn.Module, folder: Path, tensors: Mapping[str, Tensor]) -> PeftModel:
    try:
        # The factors are in the file: initializing them first would be a waste.
        model = PeftModel.from_pretrained(base, str(folder), low_cpu_mem_usage=True, torch_device="cpu")
    except EXPLAINED as error:
        raise InputError(f"{folder}: does not fit the base model: {misfit(error)}") from None
    try:
        check_saved(model, {name: tensor.shape for name, tensor in tensors.items()})
    except ValueError as error:
        raise InputError(f"{folder / WEIGHTS}: {error}") from None
    return model


def load_layers(folder: Path) -> dict[str, LsrLinear]:
    """Return an adapter's layers by name without a base model; their base weights are uninitialized.

    Raises:
        InputError: if the folder is not an LSR adapter, or its file is incomplete.
    """
    return load_with_sketch(folder)[0]


def load_with_sketch(folder: Path) -> tuple[dict[str, LsrLinear], Mapping[str, Sequence[float]]]:
    """Return the layers of `load_layers`, and the sketch of one weight of the base model that they are for, by layer.

    Raises:
        InputError: as `load_layers`.
    """
    read_config(folder, METHOD)
    config = load_config(folder)
    layers, family = _made(folder, config, read_tensors(folder))
    if family is not None:
        return layers, family.base_sketch
    return layers, {} if config.resolved is None else config.resolved.base_sketch


def made_layers(folder: Path, config: LsrConfig, tensors: Mapping[str, Tensor]) -> dict[str, LsrLinear]:
    """Return the layers of `load_layers` from what is read already.

    Raises:
        InputError: if the tensors are incomplete, or do not fit the configuration.
    """
    return _made(folder, config, tensors)[0]


def _made(folder: Path, config: LsrConfig, tensors: Mapping[str, Tensor]) -> tuple[dict[str, LsrLinear], Family | None]:
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if found := FACTOR.fullmatch(key):
            layers.setdefault(found[1], {})[f"lsr_adapters.{ADAPTER}.{found[2]}"] = tensor
    if not layers:
        raise InputError(f"{folder / WEIGHTS}: holds no LSR factors")
    # If factors are shared, the layer that stores them comes first, as in a model.
    first = sorted(layers, key=lambda name: not any(".factor_" in key for key in layers[name]))
    try:
        check_room(config, layers)
        family = read_family(config)
        holders = Holders(config, (), family)
        made = {name: _layer(name, config, holders, layers[name]) for name in first}
        return {name: made[name] for name in layers}, family
    except (ValueError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
        raise InputError(f"{folder}: {WEIGHTS} and {CONFIG} do not fit together: {first_line(error)}") from None


def _layer(name: str, config: LsrConfig, holders: Holders, state: Mapping[str, Tensor]) -> LsrLinear:
    if config.resolved is None:
        raise ValueError("resolved: the configuration does not contain the shapes of the layers")
    shapes = config.resolved.layer(name)
    base = torch.nn.utils.skip_init(nn.Linear, shapes.in_features, shapes.out_features, bias=False)
    layer = LsrLinear(base, ADAPTER, name)
    layer.update_layer(ADAPTER, config, holders.holder(layer))
    holders.add(layer, ADAPTER)
    layer.base_hashes.clear()  # there is no weight to compare with
    own = {key: value for key, value in layer.state_dict().items() if not key.startswith("base_layer.")}
    for key in sorted(own.keys() ^ state.keys()):
        raise ValueError(f"layer {name!r}: {key} is {'missing' if key in own else 'not part of this adapter'}")
    for key, tensor in state.items():
        room = own[key]
        if tensor.is_floating_point() != room.is_floating_point():
            raise ValueError(f"layer {name!r}: {key} is of {dtype_name(tensor.dtype)}, not {dtype_name(room.dtype)}")
        if tensor.shape != room.shape:
            raise ValueError(
                f"layer {name!r}: {key} is {by(tensor.shape)}, but its configuration says {by(room.shape)}"
            )
    layer.load_state_dict(state, strict=False)
    return layer


def load_config(folder: Path) -> LsrConfig:
    """Return the configuration of a folder that `read_config` has checked.

    Raises:
        InputError: if a value is not allowed.
    """
    try:
        config = LsrConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{folder / CONFIG}: {first_line(error)}") from None
    assert isinstance(config, LsrConfig)
    return config


def _check_layers(folder: Path, model: nn.Module, config: LsrConfig, names: Sequence[str]) -> None:
    """Check names and widths of the adapted layers against the base: PEFT's messages show shapes of factors.

    Raises:
        InputError: names the first layer that does not fit.
        NoBaseError: if nobody knows the class of the base model.
    """
    modules = dict(model.named_modules())
    for name in sorted(names):
        if name not in modules:
            if config.task_type is None and config.auto_mapping is None:  # frames of several adapters, and no head
                raise NoBaseError(f"{folder / CONFIG}: names no task and no class of the base model, which has {name}")
            raise InputError(f"{folder}: adapts a layer {name!r}, which the base model does not have")
        try:
            LsrLinear(modules[name], ADAPTER, name).make_form(config)
        except (TypeError, ValueError) as error:
            raise InputError(f"{folder}: {error}") from None
