"""params.yaml with some keys changed, as the training sees it."""

from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML

from pipeline import params
from pipeline.errors import UserError
from pipeline.params import Params, TrainView, mistakes
from pipeline.params.reading import seen_by

Overrides = Mapping[str, Any]  # dotted keys of params.yaml


def changed(overrides: Overrides, name: str) -> TrainView:
    """Return what a training sees of params.yaml with these dotted keys changed; `name` says who asks.

    Raises:
        UserError: if params.yaml knows no such keys or values; one line each.
    """
    content = deepcopy(_committed())
    for key, value in overrides.items():
        section, _, field = key.rpartition(".")
        (content[section] if section else content)[field] = value
    try:
        checked = Params.model_validate(content)
    except ValidationError as error:
        raise UserError("\n".join(mistakes.lines(error, Params, content, params.PARAMS, (name,)))) from None
    return seen_by(TrainView, checked, _row)


@cache
def _committed() -> dict[str, Any]:
    return YAML(typ="safe", pure=True).load(params.PARAMS)


_row = cache(params.load_row)  # the tables are long, and YAML is slow
