"""An LSR adapter made of the matrices of each layer: its configuration, and its tensors by their names in the file."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from lsr.algebra.shapes import Form
from lsr.loading.files import PREFIX
from lsr.tuner.config import LsrConfig
from lsr.tuner.forms import form_of
from lsr.tuner.patterns import exactly
from lsr.tuner.resolved import Resolved
from lsr.tuner.sharing import kind_of

SAME = ("task_type", "auto_mapping", "base_model_name_or_path", "revision", "modules_to_save")  # fields of LoRA too


class Part(NamedTuple):
    """The update of a layer, alpha / r * B R A, with 8 for r if R is diagonal; R = 1 if there is no core."""

    a: Tensor  # (r, n)
    b: Tensor  # (m, r)
    alpha: float
    core: Tensor | None = None  # (r, r), or (r,) for a diagonal

    @property
    def form(self) -> Form:
        """The shapes of A and B."""
        return Form.dense(len(self.a), self.a.shape[1], len(self.b))


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
    config.remember(Resolved.of(forms, {}))
    tensors = dict[str, Tensor]()
    for name, part in parts.items():
        adapter = f"{PREFIX}{name}.lsr_adapters."
        if not is_shared or owners[kinds[name]] == name:
            tensors |= {f"{adapter}factor_A1": part.a[None], f"{adapter}factor_B1": part.b[None]}
        if part.core is not None:
            tensors[f"{adapter}core"] = part.core
    return config, tensors
