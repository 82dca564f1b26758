"""An adapter's contents as the two files of a LoRA, which PEFT loads without this package.

It is exact, because A and B of LSR are LoRA factors: no SVD is taken.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lsr.loading.contents import Contents
from lsr.loading.updates import LORA
from lsr.tuner.files import PREFIX
from lsr.tuner.options import exactly

LONG = 2  # dots in the name of a layer that no other layer's name ends in, as in transformers
BIASES = {"none": "none", "all": "all", "lsr_only": "lora_only"}


def as_lora(contents: Contents) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the fields of adapter_config.json and the tensors of a LoRA.

    The fields are only those that old versions of PEFT and other readers know.
    """
    updates = {name: update.plain() for name, update in contents.updates.items()}
    rank, ranks = _usual({name: len(update.frames.a) for name, update in updates.items()})
    alpha, alphas = _usual({name: update.alpha for name, update in updates.items()})
    base = contents.base
    # Only entries that have tensors: PEFT adds the names of all common heads.
    modules = {name.rpartition(".")[0] for name in contents.heads}
    inside = {".".join(name.split(".")[:length]) for name in modules for length in range(1, name.count(".") + 2)}
    whole = sorted({entry for entry in contents.endings if any(name.endswith(entry) for name in inside)})
    fields = {
        **({} if base.get("task_type") else {"auto_mapping": base.get("auto_mapping")}),
        "peft_type": LORA,
        "task_type": base.get("task_type"),
        "base_model_name_or_path": base.get("base_model_name_or_path"),
        "revision": base.get("revision"),
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": contents.dropout,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "target_modules": _targets(contents),
        "modules_to_save": whole or None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "bias": BIASES[contents.bias],
        "fan_in_fan_out": contents.is_transposed,  # without a base, PEFT sets it where it is needed
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }
    tensors = {f"{PREFIX}{name}": value for name, value in contents.heads.items()}
    for name, update in updates.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = update.frames.a
        tensors[f"{PREFIX}{name}.lora_B.weight"] = update.frames.b
    return fields, tensors


def _usual(values: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """Return the most common value of layers, and the others by patterns, which PEFT matches as regular expressions."""
    usual = min(Counter(values.values()).items(), key=lambda item: (-item[1], item[0]))[0]
    others = {name: value for name, value in values.items() if value != usual}
    clash = {name: its for name, its in others.items() if any(one.endswith(f".{name}") for one in values)}
    return usual, {re.escape(name): its for name, its in others.items() if name not in clash} | exactly(clash)


def _targets(contents: Contents) -> Sequence[str] | str:
    """Return full names, or one regular expression if other modules end in one of them: PEFT matches endings."""
    names = sorted(contents.updates)
    if contents.modules is None:  # without the base nobody knows whether other layers end in a short name
        modules = [f"a.{name}" for name in names if name.count(".") < LONG]
    else:
        modules = [name for name in contents.modules if name not in contents.updates]
    endings = tuple(f".{name}" for name in names)
    return "|".join(map(re.escape, names)) if any(name.endswith(endings) for name in modules) else names
