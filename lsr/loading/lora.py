"""The updates in the files of a plain LoRA."""

import re
from collections.abc import Mapping
from dataclasses import fields
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch import Tensor

from lsr.algebra.shapes import check_rank
from lsr.loading.update import Frames, Update
from lsr.tuner.files import CONFIG, PREFIX, Files
from lsr.tuner.mistakes import InputError, explained
from lsr.tuner.options import override

LORA = "LORA"  # PEFT's name of the method
FACTOR = re.compile(rf"{re.escape(PREFIX)}(.*)\.lora_([AB])\.weight")
# Fields that are read, and fields that do not affect the trained update.
READ = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "modules_to_save", "lora_dropout")
IRRELEVANT = (
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("fan_in_fan_out", "eva_config", "megatron_core", "runtime_config", "qalora_group_size"),
)
UNCHANGED_BASE = (True, False, "gaussian", "orthogonal", "eva")  # initializations that leave the base weight unchanged


def lora_updates(files: Files) -> dict[str, Update]:
    """Return the update of each layer of a plain LoRA.

    Raises:
        InputError: if the LoRA does more than add B A, or a factor is not that of a linear layer or is missing.
    """
    folder, lora = files.folder, files.fields
    _check_plain(folder, lora)
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in files.tensors.items():
        found = FACTOR.fullmatch(key)
        if found and tensor.dim() == 2:
            sides.setdefault(found[1], {})[found[2]] = tensor
        elif ".lora_" in key:
            raise InputError(f"{folder}: {key} {tuple(tensor.shape)} is not supported; needed: LoRA of linear layers")
    if not sides:
        raise InputError(f"{folder}: holds no LoRA factors")
    for name, side in sides.items():
        if side.keys() != {"A", "B"} or not 0 < len(side["A"]) == side["B"].shape[1]:
            raise InputError(f"{folder}: layer {name!r}: lora_A and lora_B do not fit together, or one is missing")
        with explained(f"{folder}: layer {name!r}", ValueError):
            check_rank(len(side["A"]), len(side["B"]), side["A"].shape[1])
    with explained(
        f"{folder / CONFIG}: ranks or alphas of its layers", re.error, AttributeError, TypeError, OverflowError
    ):
        return {
            name: Update(Frames(a=side["A"], b=side["B"]), _alpha(folder, lora, name, len(side["A"])))
            for name, side in sides.items()
        }


def _alpha(folder: Path, lora: Mapping[str, Any], name: str, rank: int) -> float:
    expected = override(lora.get("rank_pattern") or {}, name, lora.get("r", rank))
    if expected != rank:
        raise InputError(f"{folder}: layer {name!r} has rank {rank}, but its configuration says {expected}")
    alpha = override(lora.get("alpha_pattern") or {}, name, lora.get("lora_alpha", LoraConfig().lora_alpha))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not isfinite(alpha):
        raise InputError(f"{folder}: layer {name!r}: its alpha must be a finite number, got {alpha!r}")
    return alpha / sqrt(rank) * rank if lora.get("use_rslora") else alpha


def _check_plain(folder: Path, lora: Mapping[str, Any]) -> None:
    # Refuse options of LoRA that do more than add B A to the base model's own weights.
    usual = {field.name: getattr(LoraConfig(), field.name) for field in fields(LoraConfig)}
    for key, value in sorted(lora.items()):
        if key in IRRELEVANT or key in READ or value in (None, False) or value == usual.get(key):
            continue
        if key == "init_lora_weights" and value in UNCHANGED_BASE:
            continue
        raise InputError(f"{folder}: {key}={value!r} is not supported; needed: plain LoRA on the base's own weights")
