"""params.yaml and the rows that it chooses, checked: this is the only module that opens them.

`load(View)` checks the whole file, then hands a stage the fields of its view and no others.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from pipeline.errors import UserError, nearest
from pipeline.params import mistakes
from pipeline.params.schema import PARAMS, TABLES, Common, Params, View
from pipeline.params.sections import LsrParams

AnyView = TypeVar("AnyView", bound=View)
AnyModel = TypeVar("AnyModel", bound=BaseModel)


def load(view: type[AnyView]) -> AnyView:
    """Check all of params.yaml and the chosen rows, then return what `view` sees of them.

    Raises:
        UserError: with one line for each mistake, all at once.
    """
    return seen_by(view, _validate(Params, _read(PARAMS), PARAMS, ()), load_row)


def seen_by(view: type[AnyView], params: Common, row_of: Callable[[str, str, str], Any]) -> AnyView:
    """Return what a view sees of checked params; `row_of` is `load_row`, or does the same."""
    lsr = getattr(params, LsrParams.word)
    everything = {
        **{name: getattr(params, name) for name in type(params).model_fields},
        "section": getattr(params, params.adapter),
        "dataset": row_of("data", params.data, "data"),
        "base_model": row_of("model", params.model, "model"),
        "frames": lsr.frames,
        "pooled": {name: row_of("data", name, "lsr.frames_from") for name in lsr.frames_from},
    }
    # Already validated: `model_construct` keeps the frozen sections as they are.
    return view.model_construct(**{name: everything[name] for name in view.model_fields})


def load_row(word: str, name: str, key: str | None = None) -> Any:
    """Return the row `name` of the table that `word` ("data" or "model") chooses from; `key` says which key names it.

    Raises:
        UserError: if there is no such row (the message lists those there are), or if it does not fit the schema.
    """
    path, schema = TABLES[word]
    rows = _read(path)
    if name not in rows:
        raise UserError(
            f"{PARAMS}: {key or word}: no row {name!r} in {path}{nearest(name, rows)}; rows: {', '.join(rows)}"
        )
    return _validate(schema, rows[name], path, (name,))


def load_rows(word: str) -> dict[str, Any]:
    """Return all rows of the table that `word` ("data" or "model") chooses from, by name.

    Raises:
        UserError: if the table or a row is broken.
    """
    path, schema = TABLES[word]
    return {name: _validate(schema, row, path, (name,)) for name, row in _read(path).items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = YAML(typ="safe", pure=True).load(path)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run from the root of the repository") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1
        raise UserError(f"{path}: not valid YAML: line {line}: {' '.join(str(error.problem).split())}") from None
    except YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold keys and values, got {content!r}")
    return content


def _validate(schema: type[AnyModel], content: Any, path: Path, prefix: tuple[str, ...]) -> AnyModel:
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise UserError("\n".join(mistakes.lines(error, schema, content, path, prefix))) from None
