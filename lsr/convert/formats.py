"""An adapter's contents as the two files of an LSR adapter of dense frames, or of a LoRA, which PEFT loads by itself.

Both are exact, because A and B of LSR are LoRA factors: no SVD is taken.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from lsr.loading.contents import Contents
from lsr.loading.updates import LORA, Update
from lsr.tuner.config import LsrConfig, Resolved
from lsr.tuner.files import PREFIX
from lsr.tuner.forms import form_of, kind_of
from lsr.tuner.mistakes import explained
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


def as_lsr(contents: Contents) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the fields of adapter_config.json and the tensors of an LSR adapter of dense frames.

    It has cores if all of its updates have one of the same form. Layers of a kind share their frames if all kinds do.

    Raises:
        InputError: if LsrConfig refuses a value, such as an alpha of zero or a rank above a layer's widths.
    """
    updates = dict(contents.updates)
    if len({None if update.core is None else update.core.dim() for update in updates.values()}) > 1:
        updates = {name: update.plain() for name, update in updates.items()}
    kinds = {name: kind_of(name, update.form) for name, update in updates.items()}
    owners = {kind: name for name, kind in reversed(kinds.items())}  # the first layer of each
    is_shared = len(owners) < len(updates) and all(
        update.core is not None and update.frames is updates[owners[kinds[name]]].frames
        for name, update in updates.items()
    )
    with explained(contents.source, ValueError, TypeError, AttributeError):
        config = _config(contents, updates, is_shared)
    tensors = dict[str, Tensor]()
    for name, update in updates.items():
        adapter = f"{PREFIX}{name}.lsr_adapters."
        if not is_shared or owners[kinds[name]] == name:
            tensors[f"{adapter}factor_A1"] = update.frames.a[None]
            tensors[f"{adapter}factor_B1"] = update.frames.b[None]
        if update.core is not None:
            tensors[f"{adapter}core"] = update.core
    return config.to_dict(), tensors | {f"{PREFIX}{name}": value for name, value in contents.heads.items()}


def _config(contents: Contents, updates: Mapping[str, Update], is_shared: bool) -> LsrConfig:
    one = next(iter(updates.values()))
    alpha = Counter(update.alpha for update in updates.values()).most_common(1)[0][0]
    is_diagonal = one.core is not None and one.core.dim() == 1
    config = LsrConfig(
        **contents.base,
        train="factors" if one.core is None else "core",
        core="diagonal" if is_diagonal else "full",
        modules_to_save=list(contents.endings) or None,
        rank_shape=(len(one.frames.a),),
        alpha=alpha,
        alpha_pattern=exactly({name: update.alpha for name, update in updates.items() if update.alpha != alpha}),
        share="layers" if is_shared else "none",
        dropout=contents.dropout,
        bias=contents.bias,
        inference_mode=True,
    ).with_ranks({name: len(update.frames.a) for name, update in updates.items()})
    widths = {name: (update.form.in_features, update.form.out_features) for name, update in updates.items()}
    resolved = Resolved.of({name: form_of(config, name, *its) for name, its in widths.items()})
    # A list of targets would hold endings of names, which other layers might have too.
    return replace(config, target_modules="|".join(map(re.escape, updates)), resolved=resolved)
