"""An LSR adapter made of the matrices of each layer: its configuration, its tensors, and its folder."""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from lsr.convert.export import export_lora
from lsr.convert.writing import check_output, write_adapter, writing
from lsr.loading.adapters import METHOD
from lsr.loading.contents import Contents, Update
from lsr.loading.lora import Part
from lsr.loading.task_note import labels_of
from lsr.tuner.card import UNNAMED, Card
from lsr.tuner.config import DIAGONAL, LsrConfig
from lsr.tuner.files import PREFIX, TASK
from lsr.tuner.forms import form_of
from lsr.tuner.mistakes import InputError
from lsr.tuner.patterns import exactly
from lsr.tuner.resolved import Resolved
from lsr.tuner.sharing import kind_of

SAME = ("task_type", "auto_mapping", "base_model_name_or_path", "revision", "modules_to_save")  # fields of LoRA too


def composed(base: Mapping[str, Any], parts: Mapping[str, Part], **options: Any) -> tuple[LsrConfig, dict[str, Tensor]]:
    """Return an adapter of parts by layer; either all have a core of the same form, between frozen frames, or none has.

    `base` holds the fields SAME, and `options` further ones, of an LsrConfig. Cores whose A and B are the same objects
    in all layers of a kind share them.

    Raises:
        ValueError: if LsrConfig refuses a value, such as an alpha of zero or a rank above a layer's widths.
    """
    one = next(iter(parts.values()))
    kinds = {name: kind_of(name, part.form) for name, part in parts.items()}
    owners = {kind: name for name, kind in reversed(kinds.items())}  # the first layer of each
    is_shared = False
    if one.core is not None:
        options |= {"train": "core", "core": "diagonal" if one.core.dim() == 1 else "full"}
        is_shared = len(owners) < len(parts) and all(
            part.a is parts[owners[kinds[name]]].a for name, part in parts.items()
        )
    alpha = Counter(part.alpha for part in parts.values()).most_common(1)[0][0]
    config = LsrConfig(
        **{name: base[name] for name in SAME if name in base},
        rank_shape=(len(one.a),),
        alpha=alpha,
        alpha_pattern=exactly({name: part.alpha for name, part in parts.items() if part.alpha != alpha}),
        share="layers" if is_shared else "none",
        inference_mode=True,
        **options,
    ).with_ranks({name: len(part.a) for name, part in parts.items()})
    # A list would hold endings of names, which other layers might have too.
    config = replace(config, target_modules="|".join(map(re.escape, parts)))
    forms = {name: form_of(config, name, part.a.shape[1], len(part.b)) for name, part in parts.items()}
    config = replace(config, resolved=Resolved.of(forms))
    tensors = dict[str, Tensor]()
    for name, part in parts.items():
        adapter = f"{PREFIX}{name}.lsr_adapters."
        if not is_shared or owners[kinds[name]] == name:
            tensors |= {f"{adapter}factor_A1": part.a[None], f"{adapter}factor_B1": part.b[None]}
        if part.core is not None:
            tensors[f"{adapter}core"] = part.core
    return config, tensors


def write_contents(adapter: Contents, folder: Path, method: str = METHOD, *, force: bool = False) -> None:
    """Write an adapter's folder, of LSR or LoRA; it has cores if all of its updates have one of the same form.

    Raises:
        InputError: if there is no such method, the folder exists and `force` is false, or LSR refuses a value.
    """
    if method == "LORA":
        with TemporaryDirectory() as beside:
            write_contents(adapter, Path(beside, "lsr"))
            export_lora(Path(beside, "lsr"), folder, force=force)
        return
    if method != METHOD:
        raise InputError(f"method must be {METHOD} or LORA, got {method!r}")
    check_output(folder, (), replace=force)
    updates = dict(adapter.updates)
    if len({None if update.core is None else update.core.dim() for update in updates.values()}) > 1:
        updates = {name: update.plain() for name, update in updates.items()}
    fields = {**adapter.base, "modules_to_save": list(adapter.endings) or None}
    try:
        config, factors = composed(fields, {name: _part(update) for name, update in updates.items()})
    except ValueError as error:
        raise InputError(f"{adapter.source}: {error}") from None
    with writing(folder) as new:
        write_adapter(
            new, config.to_dict(), factors | {f"{PREFIX}{key}": value for key, value in adapter.heads.items()}
        )
        labels = labels_of(adapter.task, adapter.heads)
        base = config.base_model_name_or_path or UNNAMED
        Card(METHOD, base, config.revision, config.task_type, labels).write(new)
        if adapter.task is not None:
            (new / TASK).write_text(json.dumps(adapter.task, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _part(update: Update) -> Part:
    (a, b), core = (update.frames.a, update.frames.b), update.core
    return Part(a, b, update.scaling * (DIAGONAL if core is not None and core.dim() == 1 else len(a)), core)
