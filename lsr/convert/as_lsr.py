"""An adapter's contents as the two files of an LSR adapter."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from lsr.loading.contents import Contents
from lsr.loading.updates import Update
from lsr.tuner.config import LsrConfig
from lsr.tuner.files import PREFIX
from lsr.tuner.forms import form_of, kind_of
from lsr.tuner.mistakes import explained
from lsr.tuner.options import exactly
from lsr.tuner.resolved import Resolved


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
