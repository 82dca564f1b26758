"""Which layers a configuration adapts and in what shapes, checked before anything changes, and which share theirs.

A name that matches nothing is an error here; PEFT ignores it silently.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple, cast

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer, _maybe_include_all_linear_layers, check_target_module_exists
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from lsr.algebra.separable import Form, split_width
from lsr.algebra.spectrum import check_rank
from lsr.init.passes import widths
from lsr.tuner.config import LsrConfig
from lsr.tuner.mistakes import explained
from lsr.tuner.options import PATTERNS, matches

# By architecture, if a configuration names no layers; PEFT's table has no entries for the last two.
DEFAULTS = cast("dict[str, list[str]]", TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING) | {
    "distilbert": ["q_lin", "v_lin"],
    "modernbert": ["Wqkv"],
}
SHOWN = 8  # names of a message
ADDED = {*SEQ_CLS_HEAD_NAMES, "qa_outputs"}  # to modules_to_save by PEFT, by the task_type, whatever the model has
ADAPTABLE = (nn.Linear, Conv1D)
MOST_PADDED = 2  # times a layer's width, which the factors of a shape may span: the next power of two is below
MOST_ENTRIES = 2**30  # of A and B together: as many as a 23,000 x 23,000 layer has at full rank
SMALL = 64  # a rank that sums may have on a layer that is narrower
INDEX = re.compile(r"(?<![^.])\d+(?![^.])")  # of a layer, in its name


def check_names(config: PeftConfig, model: nn.Module) -> list[str]:
    """Return the names of a model's modules; refuse entries of the configuration that match none: PEFT skips them.

    These are entries of target_modules, exclude_modules and modules_to_save. PEFT also skips targets in the modules
    that are trained in full.

    Raises:
        ValueError: names the entry and what the model has, the nearest first.
    """
    inside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    names = [name for name, _ in model.named_modules() if name and not name.startswith(inside)]
    linear = linear_layers(model, config)
    for field in ("target_modules", "exclude_modules"):
        value: Any = getattr(config, field, None)  # not every method has exclude_modules
        is_pattern = isinstance(value, str)
        entries: list[str] = [value] if is_pattern else sorted(value or ())
        for entry in entries if value != "all-linear" else ():
            pattern = entry if is_pattern else rf"(.*\.)?{re.escape(entry)}"
            matched = [name for name in names if re.fullmatch(pattern, name)]
            if not matched:
                problem = f"{entry!r} matches no layer" if is_pattern else f"no layer is named {entry!r}"
                raise ValueError(f"{field}: {problem}; {_there_are(linear, 'linear layers', entry)}")
            if field == "target_modules" and all(is_trained_whole(config, name) for name in matched):
                raise ValueError(
                    f"{field}: {entry!r} is part of the head, or of another module that is trained in full"
                )
    for entry in getattr(config, "modules_to_save", None) or []:
        if entry not in ADDED and not any(name.endswith(entry) for name in names):
            there_are = _there_are(_last_parts(names), "modules", entry)
            raise ValueError(f"modules_to_save: no module is named {entry!r}; {there_are}")
    return names


def adapted_names(model: nn.Module, config: LsrConfig, names: list[str]) -> list[str]:
    """Return the layers in `names` that a configuration adapts, without changing the configuration.

    Raises:
        ValueError: if a pattern or an index matches none of them; names the adapted layers, the nearest first.
    """
    opened = cast("LsrConfig", _maybe_include_all_linear_layers(replace(config), model))
    adapted = [name for name in names if check_target_module_exists(opened, name)]
    if config.target_modules == "all-linear":  # PEFT lists modules_to_save too, e.g. DistilBERT's pre_classifier
        adapted = [name for name in adapted if not is_trained_whole(config, name)]
        if config.layers_to_transform is not None:  # of all-linear layers PEFT ignores it, of a list of endings not
            ends = {name: replace(config, target_modules=[name.rpartition(".")[2]]) for name in adapted}
            adapted = [name for name in adapted if check_target_module_exists(ends[name], name)]
    for field in PATTERNS:
        for pattern in getattr(config, field):
            if not any(matches(pattern, name) for name in adapted):
                there_are = _there_are(_last_parts(adapted), "adapted layers", pattern)
                raise ValueError(f"{field}: {pattern!r} matches no adapted layer; {there_are}")
    check_indices(config, adapted)
    return adapted


def is_trained_whole(config: PeftConfig, name: str) -> bool:
    """Return whether a layer is in modules_to_save or inside such a module, by PEFT's rule: any suffix of a name."""
    paths = accumulate(name.split("."), lambda path, part: f"{path}.{part}")
    return any(path.endswith(tuple(getattr(config, "modules_to_save", None) or ())) for path in paths)


def check_indices(config: PeftConfig, names: list[str]) -> None:
    """Refuse an index that none of these layers has: PEFT skips it silently as long as another one matches.

    Raises:
        ValueError: names the index.
    """
    indices = getattr(config, "layers_to_transform", None)
    for index in [indices] if isinstance(indices, int) else indices or []:
        if not any(f".{index}." in name for name in names):
            raise ValueError(f"layers_to_transform: no adapted layer has the index {index}")


def linear_layers(model: nn.Module, config: PeftConfig | None = None) -> list[str]:
    """Return the distinct last parts of the names of a model's linear layers, adapted or not.

    Layers that the configuration trains in full are left out.
    """
    found = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    kept = [name for name in found if config is None or not is_trained_whole(config, name)]
    return _last_parts([name.removesuffix(".base_layer") for name in kept])


def heads_of(model: nn.Module) -> list[str]:
    """Return the modules with parameters beside a model's backbone."""
    beside = {name: its for name, its in model.named_children() if name != getattr(model, "base_model_prefix", "")}
    return [name for name, module in beside.items() if any(True for _ in module.parameters())]


def _last_parts(names: Sequence[str]) -> list[str]:
    return [last for last in dict.fromkeys(name.rpartition(".")[2] for name in names) if not last.isdigit()]


def _there_are(known: Sequence[str], what: str, word: str) -> str:
    """Return what there is in place of a word, as the end of a message, the nearest first."""
    ordered = sorted(known, key=lambda name: -difflib.SequenceMatcher(None, word, name).ratio())
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return f"{what}: {', '.join(ordered[:SHOWN])}{more}"


class Kind(NamedTuple):
    """What layers that share A and B have in common: the name, of several layers without indices, and the shapes."""

    pattern: str
    form: Form

    def __str__(self) -> str:
        """Return the pattern and the widths."""
        return f"{self.pattern} ({self.form.out_features} x {self.form.in_features})"


def kind_of(layer_name: str, form: Form, share: str = "layers") -> Kind:
    """Return the kind of a layer: `encoder.layer.*.attention.self.query` of `encoder.layer.3.attention.self.query`.

    With `share="none"` each layer is a kind.
    """
    return Kind(INDEX.sub("*", layer_name) if share == "layers" else layer_name, form)


def form_of(config: LsrConfig, layer_name: str, in_features: int, out_features: int) -> Form:
    """Return the shapes of an adapter of a layer: those of its file, or the smallest ones.

    Raises:
        ValueError: if they do not fit the layer; names the layer and what would fit.
    """
    ranks, terms = config.ranks(layer_name), config.terms(layer_name)
    with explained(f"layer {layer_name!r}", ValueError):
        if config.resolved is None:
            in_shape, out_shape = split_width(in_features, ranks), split_width(out_features, ranks)
        else:
            saved = config.resolved.layer(layer_name)
            theirs, ours = (saved.out_features, saved.in_features), (out_features, in_features)
            if theirs != ours:
                raise ValueError(
                    "the adapter is for a layer of {} x {}, and this one is {} x {}".format(*theirs, *ours)
                )
            in_shape, out_shape = saved.in_shape, saved.out_shape
            _check_split("in_shape", in_shape, in_features, len(ranks))
            _check_split("out_shape", out_shape, out_features, len(ranks))
        if len(ranks) == 1:
            check_rank(*ranks, out_features, in_features)
        form = Form(ranks, in_shape, out_shape, terms, in_features, out_features)
        if terms > form.max_separation_rank:
            raise ValueError(
                f"separation_rank must be in [1, {form.max_separation_rank}] for {out_features} x {in_features} as "
                f"{list(out_shape)} x {list(in_shape)} and rank_shape {list(ranks)}, got {terms}"
            )
    return form


def _check_split(field: str, shape: tuple[int, ...], width: int, count: int) -> None:
    most = width if count == 1 else MOST_PADDED * width
    if len(shape) != count or not width <= prod(shape) <= most:
        needed = f"as many sizes as rank_shape, with a product from {width} to {most}"
        raise ValueError(f"{field} must hold {needed}, got {list(shape)}")


def check_adaptable(base: nn.Module, layer_name: str) -> None:
    """Check that a layer can be adapted.

    Raises:
        TypeError: if it cannot; names the layer and the reason.
    """
    problem = f"layer {layer_name!r} cannot be adapted"
    if not isinstance(base, ADAPTABLE):
        kinds = " or ".join(kind.__name__ for kind in ADAPTABLE)
        raise TypeError(f"{problem}: it must be {kinds}, got {type(base).__name__}")
    if isinstance(base, NonDynamicallyQuantizableLinear):  # an adapter would have no effect, silently
        raise TypeError(
            f"{problem}: nn.MultiheadAttention reads its weight but never calls it; leave it out with exclude_modules"
        )
    if not base.weight.is_floating_point() and not is_quantized(base):
        raise TypeError(
            f"{problem}: its weight is quantized, got the dtype {base.weight.dtype}; "
            "only the 8- and 4-bit layers of bitsandbytes are supported"
        )


def is_quantized(layer: nn.Module) -> bool:
    """Return whether a layer is an 8- or 4-bit layer of bitsandbytes."""
    return type(layer.weight).__name__ in ("Int8Params", "Params4bit")


def check_forms(model: nn.Module, names: Sequence[str], config: LsrConfig) -> dict[str, Form]:
    """Check that all layers can be adapted, before the model is changed, and return the shapes of their adapters.

    Raises:
        ValueError: if the shapes do not fit a layer; TypeError if its class cannot be adapted. Names the layer.
    """
    forms = {}
    for name in names:
        module = model.get_submodule(name)
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        check_adaptable(base, name)
        forms[name] = form_of(config, name, *widths(base))
    return forms


def form_in_file(config: LsrConfig, layer_name: str) -> Form:
    """Return the form of a layer of a saved adapter, as its file says."""
    assert config.resolved is not None
    shapes = config.resolved.layer(layer_name)
    return form_of(config, layer_name, shapes.in_features, shapes.out_features)


def check_room(config: LsrConfig, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Refuse, before allocating memory, shapes that need more than the file holds: its author can write any number.

    `tensors` holds the tensors of each layer.

    Raises:
        ValueError: names the layer.
    """
    held = sum(tensor.numel() for its in tensors.values() for tensor in its.values())
    for name in tensors:
        form = form_in_file(config, name)
        used = form.rank * (form.in_width + form.out_width)
        with explained(f"layer {name!r}", ValueError):
            if form.parameters > held:
                raise ValueError(f"its configuration says {form.parameters:,} entries, but the file holds {held:,}")
            if form.rank > SMALL:
                check_rank(form.rank, form.out_features, form.in_features)
            if used > MOST_ENTRIES:
                raise ValueError(f"its A and B have {used:,} entries; at most {MOST_ENTRIES:,} are allowed")
