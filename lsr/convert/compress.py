"""Write an existing PEFT LoRA as an LSR adapter, with a certificate of the error."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from math import isfinite, prod, sqrt
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch import Tensor

from lsr.algebra.shapes import Form, split_width
from lsr.convert.certificate import Certificate, Part, check_values, reduce_layer, write_parts
from lsr.convert.files import PREFIX, InputError, check_output, read_config, read_tensors
from lsr.convert.refit import Update, split_rank
from lsr.tuner.config import LsrConfig, override
from lsr.tuner.expressions import check_expressions
from lsr.tuner.saved import CONFIG, first_line

BIASES = {"none": "none", "all": "all", "lora_only": "lsr_only"}
# Fields of LoRA that are read, and fields that do not affect the trained update.
READ = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "modules_to_save", "lora_dropout")
IRRELEVANT = (
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("fan_in_fan_out", "eva_config", "megatron_core", "runtime_config", "qalora_group_size"),
)
UNCHANGED_BASE = (True, False, "gaussian", "orthogonal", "eva")  # initializations that leave the base weight unchanged


def compress_lora(
    folder: str | Path,
    output: str | Path,
    *,
    separation_rank: int | None = None,
    error: float | None = None,
    rank_shape: tuple[int, ...] | None = None,
    force: bool = False,
) -> Certificate:
    """Write an existing PEFT LoRA as an LSR adapter: the same heads and biases, updates as close as its terms allow.

    With `error` each layer gets the fewest terms that reach it, at most `separation_rank` if that is given too. Without
    `rank_shape` each layer keeps its rank, split into two factors.

    Raises:
        InputError: if the folder is not a LoRA or has no exact LSR form, the error is out of reach, or a value is not
            allowed.
    """
    folder, output = Path(folder), Path(output)
    check_values(separation_rank, error, rank_shape)
    check_output(output, (folder,), replace=force)
    lora, tensors = read_config(folder, "LORA"), read_tensors(folder)
    check_exact(folder, lora)
    pairs, others = lora_pairs(folder, lora, tensors)
    config = _config(folder, lora, pairs)
    forms = {name: _form_of_pair(name, pair, rank_shape) for name, pair in pairs.items()}
    _check_limit(separation_rank, forms)
    parts = {}
    for name, (left, right) in pairs.items():
        reduced = reduce_layer(name, Update(left, right), forms[name], separation_rank, error)
        parts[name] = Part(forms[name], reduced, 1.0, left.numel() + right.numel())
    return write_parts(output, config, parts, others)


def _config(folder: Path, lora: Mapping[str, Any], layers: Iterable[str]) -> LsrConfig:
    try:
        return LsrConfig(
            task_type=lora.get("task_type"),
            base_model_name_or_path=lora.get("base_model_name_or_path"),
            revision=lora.get("revision"),
            auto_mapping=lora.get("auto_mapping"),
            target_modules=sorted(layers),
            modules_to_save=lora.get("modules_to_save"),
            bias=BIASES[lora.get("bias", "none")],
            dropout=lora.get("lora_dropout", 0.0),
            seed=0,
        )
    except (ValueError, TypeError) as error:
        raise InputError(f"{folder / CONFIG}: {first_line(error)}") from None


def lora_pairs(
    folder: Path,
    lora: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Return (scaling * B, A) of each layer of a LoRA by name, and all other tensors.

    Raises:
        InputError: if a factor is not that of a linear layer or is missing, or an expression takes too long.
    """
    sides: dict[str, dict[str, Tensor]] = {}
    others = {}
    for key, tensor in tensors.items():
        found = re.fullmatch(rf"{re.escape(PREFIX)}(.*)\.lora_([AB])\.weight", key)
        if found and tensor.dim() == 2:
            sides.setdefault(found[1], {})[found[2]] = tensor.double()
        elif ".lora_" in key:
            raise InputError(f"{folder}: {key} {tuple(tensor.shape)} has no LSR form; needed: LoRA of linear layers")
        elif not re.search(r"\.(modules_to_save|original_module)\.", key):  # with bias="all" PEFT writes heads twice
            others[key] = tensor
    if not sides:
        raise InputError(f"{folder}: holds no LoRA factors")
    try:
        check_expressions(lora, sides)
    except ValueError as error:
        raise InputError(f"{folder / CONFIG}: {error}") from None
    pairs = {}
    for name, side in sides.items():
        if side.keys() != {"A", "B"} or len(side["A"]) != side["B"].shape[1]:
            raise InputError(f"{folder}: layer {name!r}: lora_A and lora_B do not fit together, or one is missing")
        pairs[name] = _lora_scaling(folder, lora, name, len(side["A"])) * side["B"], side["A"]
    return pairs, others


def _lora_scaling(folder: Path, lora: Mapping[str, Any], name: str, rank: int) -> float:
    expected = override(lora.get("rank_pattern") or {}, name, lora.get("r", rank))
    if expected != rank:
        raise InputError(f"{folder}: layer {name!r} has rank {rank}, but its configuration says {expected}")
    alpha = override(lora.get("alpha_pattern") or {}, name, lora.get("lora_alpha", LoraConfig().lora_alpha))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not isfinite(alpha):
        raise InputError(f"{folder}: layer {name!r}: its alpha must be a finite number, got {alpha!r}")
    return alpha / (sqrt(rank) if lora.get("use_rslora") else rank)


def check_exact(folder: Path, lora: Mapping[str, Any]) -> None:
    """Refuse options of LoRA that do more than add B A.

    Raises:
        InputError: names the option.
    """
    usual = {field.name: getattr(LoraConfig(), field.name) for field in fields(LoraConfig)}
    for key, value in sorted(lora.items()):
        if key in IRRELEVANT or key in READ or value in (None, False) or value == usual.get(key):
            continue
        if key == "init_lora_weights" and value in UNCHANGED_BASE:
            continue
        raise InputError(
            f"{folder}: {key}={value!r} has no exact LSR form; needed: plain LoRA on the base's own weights"
        )
    if str(lora.get("bias", "none")) not in BIASES:
        raise InputError(f"{folder}: bias must be one of {list(BIASES)}, got {lora['bias']!r}")


def _form_of_pair(name: str, pair: tuple[Tensor, Tensor], rank_shape: tuple[int, ...] | None) -> Form:
    rows, columns = len(pair[0]), pair[1].shape[1]
    ranks = rank_shape or split_rank(len(pair[1]))
    if prod(ranks) > min(rows, columns):
        raise InputError(f"layer {name!r}: the rank must be in [1, {min(rows, columns)}], got {prod(ranks)}")
    return Form(ranks, split_width(columns, ranks), split_width(rows, ranks), 1, columns, rows)


def _check_limit(separation_rank: int | None, forms: Mapping[str, Form]) -> None:
    """Refuse more terms than any layer can use.

    Raises:
        InputError: names the largest number allowed.
    """
    limit = max(form.max_separation_rank for form in forms.values())
    if separation_rank is not None and separation_rank > limit:
        raise InputError(f"--separation-rank must be in [1, {limit}] for these layers, got {separation_rank}")
