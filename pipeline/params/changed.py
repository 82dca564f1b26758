"""Views of params.yaml with some keys changed, to compare many settings in one process."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from pipeline.core.errors import UserError
from pipeline.params.reading import AnyView, read_yaml, seen_by, validated
from pipeline.params.schema import PARAMS, Params

Overrides = Mapping[str, Any]  # dotted keys of params.yaml


def changed(overrides: Overrides, view: type[AnyView], path: Path = PARAMS, place: tuple[str, ...] = ()) -> AnyView:
    """Return a view of params.yaml with these dotted keys changed; messages name `path` and `place`.

    Raises:
        UserError: if params.yaml has no such key or does not allow the value; one line each.
    """
    content = deepcopy(read_yaml(PARAMS))
    for key, value in overrides.items():
        section, _, field = key.rpartition(".")
        inner = content.setdefault(section, {}) if section else content
        if not isinstance(inner, dict):
            raise UserError(f"{path}: {'.'.join((*place, key))}: {section} of {PARAMS} has no keys")
        inner[field] = value
    return seen_by(view, validated(Params, content, path, place))
