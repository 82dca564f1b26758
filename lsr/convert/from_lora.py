"""Make an LSR adapter of a plain PEFT LoRA: the same tensors, in the fused layer of LSR."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lsr.convert.lora import FACTOR, LoraPair, lora_pairs
from lsr.convert.writing import check_output, write_adapter, writing
from lsr.loading.files import PREFIX, InputError, read_config, read_labels, read_tensors
from lsr.tuner.card import UNNAMED, Card
from lsr.tuner.config import LsrConfig
from lsr.tuner.forms import form_of
from lsr.tuner.patterns import exactly
from lsr.tuner.resolved import Resolved
from lsr.tuner.saved import CONFIG, WRAPPED

SAME = ("task_type", "auto_mapping", "base_model_name_or_path", "revision", "modules_to_save")  # fields of both


def from_lora(lora: str | Path, output: str | Path, *, force: bool = False) -> LsrConfig:
    """Write the LoRA in a folder as an LSR adapter with the same A, B, head and biases, bit for bit.

    With `rank_shape=(r,)` and trained factors LSR is LoRA: it computes the same, goes on training in the same way, and
    `export_lora` gives the same tensors again. Returns the configuration, which names each layer.

    Raises:
        InputError: if the folder is not a LoRA, or does more than add B A to linear layers (DoRA, initializations that
            change the base weight, convolutions, embeddings); if the output exists and `force` is false; or if LSR
            refuses a value, such as an alpha of zero.
    """
    lora, output = Path(lora), Path(output)
    check_output(output, (lora,), replace=force)
    fields = read_config(lora, "LORA")
    pairs = lora_pairs(lora, fields)
    try:
        config = _config(fields, pairs)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{lora / CONFIG}: {error}") from None
    # With bias="all" PEFT writes the biases of a head twice, by the names that they have inside its wrapper too.
    tensors = {k: value for k, value in read_tensors(lora).items() if not (FACTOR.fullmatch(k) or WRAPPED.search(k))}
    for name, (b, a, _) in pairs.items():
        factor = f"{PREFIX}{name}.lsr_adapters.factor"
        tensors |= {f"{factor}_A1": a[None], f"{factor}_B1": b[None]}
    with writing(output) as new:
        write_adapter(new, config.to_dict(), tensors)
        base = config.base_model_name_or_path or UNNAMED
        Card("LSR", base, config.revision, config.task_type, read_labels(lora) or ()).write(new)
    return config


def _config(lora: Mapping[str, Any], pairs: Mapping[str, LoraPair]) -> LsrConfig:
    alpha = Counter(pair.alpha for pair in pairs.values()).most_common(1)[0][0]
    bias, same = lora.get("bias", "none"), {name: lora[name] for name in SAME if name in lora}
    config = LsrConfig(
        **same,
        alpha=alpha,
        alpha_pattern=exactly({name: pair.alpha for name, pair in pairs.items() if pair.alpha != alpha}),
        dropout=lora.get("lora_dropout", 0.0),
        bias="lsr_only" if bias == "lora_only" else bias,
        inference_mode=True,
    ).with_ranks({name: len(pair.a) for name, pair in pairs.items()})
    # A list would hold endings of names, which other layers might have too.
    config = replace(config, target_modules="|".join(map(re.escape, pairs)))
    forms = {name: form_of(config, name, pair.a.shape[1], len(pair.b)) for name, pair in pairs.items()}
    config.remember(Resolved.of(forms, {}))
    return config
