"""Select the layers that a configuration adapts, and check its entries before the model is changed.

An entry that matches no layer is an error here; PEFT ignores it silently.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, cast

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer, _maybe_include_all_linear_layers, check_target_module_exists
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from lsr.tuner.config import LsrConfig
from lsr.tuner.options import PATTERNS, matches
from lsr_onnx.errors import some_of

# By architecture, if a configuration names no layers; PEFT's table has no entries for the last two.
DEFAULTS = cast("dict[str, list[str]]", TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING) | {
    "distilbert": ["q_lin", "v_lin"],
    "modernbert": ["Wqkv"],
}
SHOWN = 8  # names of a message
# Names that PEFT adds to modules_to_save for a task_type, whether or not the model has them.
ADDED = {*SEQ_CLS_HEAD_NAMES, "qa_outputs"}
ADAPTABLE = (nn.Linear, Conv1D)
MAMBA = ("x_proj", "dt_proj", "out_proj")
# By class of a module: its layers whose weight it reads without calling them, some of them only by kernels for GPUs.
UNCALLED = {
    "MambaMixer": MAMBA,
    "FalconMambaMixer": MAMBA,
    "JambaMambaMixer": ("dt_proj",),
    "Mamba2Mixer": ("out_proj",),
    "BambaMixer": ("out_proj",),
    "FalconH1Mixer": ("out_proj",),
    "GraniteMoeHybridMambaLayer": ("out_proj",),
    "NemotronHMamba2Mixer": ("out_proj",),
    "Zamba2MambaMixer": ("out_proj",),
    "WavLMAttention": ("q_proj", "k_proj", "v_proj", "out_proj"),
}


def check_names(
    config: PeftConfig,
    model: nn.Module,
) -> list[str]:
    """Check that each entry of a configuration matches a module, and return the names of the model's modules.

    The entries are those of target_modules, exclude_modules and modules_to_save. Targets inside fully trained modules
    do not count: PEFT skips them.

    Raises:
        ValueError: if an entry matches none; names it and the model's modules, the nearest first.
    """
    tuners = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    inside = tuple(f"{name}." for name in tuners)
    names = [name for name, _ in model.named_modules() if name and not name.startswith(inside)]
    targets = _match_names("target_modules", config, model, names)
    _match_names("exclude_modules", config, model, names)
    for entry, matched in targets.items():
        if all(is_trained_whole(config, name) for name in matched):
            whole = "part of the head, or of another module that is trained in full"
            raise ValueError(f"target_modules: {entry!r} is {whole}")
    for entry in getattr(config, "modules_to_save", None) or []:
        if entry in ADDED or any(name.endswith(entry) for name in names):
            continue
        there_are = _there_are(_last_parts(names), "modules", entry)
        raise ValueError(f"modules_to_save: no module is named {entry!r}; {there_are}")
    return names


def _match_names(
    field: str,
    config: PeftConfig,
    model: nn.Module,
    names: Sequence[str],
) -> dict[str, list[str]]:
    # The names that each entry of a list of endings matches, or the pattern in its place.
    value: Any = getattr(config, field, None) or []  # not every method has exclude_modules
    if value == "all-linear":
        return {}
    is_pattern = isinstance(value, str)
    matched = {}
    for entry in [value] if is_pattern else sorted(value):
        pattern = entry
        problem = f"{entry!r} matches no layer"
        if not is_pattern:
            pattern = rf"(.*\.)?{re.escape(entry)}"
            problem = f"no layer is named {entry!r}"
        matched[entry] = [name for name in names if re.fullmatch(pattern, name)]
        if not matched[entry]:
            there_are = _there_are(linear_layers(model, config), "linear layers", entry)
            raise ValueError(f"{field}: {problem}; {there_are}")
    return matched


def select_layers(
    model: nn.Module,
    config: LsrConfig,
    names: list[str],
) -> list[str]:
    """Return the layers in `names` that a configuration adapts, without changing the configuration.

    Raises:
        ValueError: if a pattern or an index matches no layer; names the adapted layers, the nearest first.
    """
    opened: Any = _maybe_include_all_linear_layers(replace(config), model)
    adapted = [name for name in names if check_target_module_exists(opened, name)]
    if config.target_modules == "all-linear":  # PEFT lists modules_to_save too, e.g. DistilBERT's pre_classifier
        adapted = [name for name in adapted if not is_trained_whole(config, name)]
        if config.layers_to_transform is not None:
            adapted = [name for name in adapted if _is_transformed(config, name)]
    for field in PATTERNS:
        for pattern in getattr(config, field):
            if any(matches(pattern, name) for name in adapted):
                continue
            there_are = _there_are(_last_parts(adapted), "adapted layers", pattern)
            raise ValueError(f"{field}: {pattern!r} matches no adapted layer; {there_are}")
    check_indices(config, adapted)
    return adapted


def _is_transformed(config: LsrConfig, name: str) -> bool:
    """Return whether layers_to_transform selects a layer; PEFT applies it to endings of names, not to all-linear."""
    *_, ending = name.split(".")
    return bool(check_target_module_exists(replace(config, target_modules=[ending]), name))


def is_trained_whole(config: PeftConfig, name: str) -> bool:
    """Return whether a layer is in modules_to_save or in such a module, by PEFT's rule: any suffix of a name."""
    endings = tuple(getattr(config, "modules_to_save", None) or ())
    return any(outer.endswith(endings) for outer in outer_names(name))


def outer_names(name: str) -> Iterable[str]:
    """Return the names of a module and of all modules around it."""
    return accumulate(name.split("."), "{}.{}".format)


def check_indices(config: PeftConfig, names: list[str]) -> None:
    """Reject an index that none of these layers has: PEFT skips it silently if another index matches.

    Raises:
        ValueError: names the index.
    """
    indices = getattr(config, "layers_to_transform", None)
    if isinstance(indices, int):
        indices = [indices]
    for index in indices or []:
        if not any(f".{index}." in name for name in names):
            raise ValueError(f"layers_to_transform: no adapted layer has the index {index}")


def linear_layers(model: nn.Module, config: PeftConfig | None = None) -> list[str]:
    """Return the distinct last parts of the names of a model's linear layers, adapted or not.

    Fully trained layers are left out.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, ADAPTABLE)]
    if config is not None:
        names = [name for name in names if not is_trained_whole(config, name)]
    names = [name.removesuffix(".base_layer") for name in names]
    return _last_parts(names)


def heads_of(model: nn.Module) -> list[str]:
    """Return the modules with parameters outside a model's backbone."""
    backbone = getattr(model, "base_model_prefix", "")
    return [name for name, module in model.named_children() if name != backbone and [*module.parameters()]]


def _last_parts(names: Sequence[str]) -> list[str]:
    parts = [name.rpartition(".")[2] for name in names]
    return [part for part in dict.fromkeys(parts) if not part.isdigit()]


def _there_are(
    known: Sequence[str],
    what: str,
    wrong: str,
) -> str:
    """Format the possible names, nearest first, as the end of a message about a wrong one."""
    likeness = {name: difflib.SequenceMatcher(None, wrong, name).ratio() for name in known}
    nearest = sorted(likeness, key=likeness.__getitem__, reverse=True)
    return f"{what}: {some_of(nearest, SHOWN)}"


def check_adaptable(base: nn.Module, layer_name: str) -> None:
    """Check that a layer can be adapted.

    Raises:
        TypeError: if not; names the layer and the reason.
    """
    problem = f"layer {layer_name!r} cannot be adapted"
    if not isinstance(base, ADAPTABLE):
        allowed = " or ".join(layer_class.__name__ for layer_class in ADAPTABLE)
        raise TypeError(f"{problem}: it must be {allowed}, got {type(base).__name__}")
    if isinstance(base, NonDynamicallyQuantizableLinear):  # an adapter would have no effect, silently
        reason = "nn.MultiheadAttention reads its weight but never calls it"
        raise TypeError(f"{problem}: {reason}; leave it out with exclude_modules")
    if not base.weight.is_floating_point() and not is_quantized(base):
        raise TypeError(
            f"{problem}: its weight is quantized, got the dtype {base.weight.dtype}; "
            "only the 8- and 4-bit layers of bitsandbytes are supported"
        )


def check_called(model: nn.Module, layer_name: str) -> None:
    """Check that a model calls a layer instead of reading its weight: an adapter would have no effect, silently.

    Raises:
        TypeError: if not; names the layer.
    """
    outer, _, last = layer_name.rpartition(".")
    parent = type(model.get_submodule(outer)).__name__
    if last in UNCALLED.get(parent, ()):
        reason = f"{parent} reads its weight but does not always call it"
        raise TypeError(f"layer {layer_name!r} cannot be adapted: {reason}; leave it out with exclude_modules")


def is_quantized(layer: nn.Module) -> bool:
    """Return whether a layer is an 8- or 4-bit layer of bitsandbytes."""
    return type(layer.weight).__name__ in ("Int8Params", "Params4bit")
