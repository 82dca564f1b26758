"""Read and check params.yaml and the rows it selects. This is the only module that opens these files.

`load(View)` checks the whole file, then returns only the fields of the stage's view.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.core.errors import UserError, nearest
from pipeline.params import mistakes
from pipeline.params.model_row import ModelRow
from pipeline.params.schema import PARAMS, TABLES, Params, View

AnyView = TypeVar("AnyView", bound=View)
AnyModel = TypeVar("AnyModel", bound=BaseModel)


def load(view: type[AnyView]) -> AnyView:
    """Check all of params.yaml and the selected rows, then return the part that `view` sees.

    Raises:
        UserError: with one line for each mistake, all at once.
    """
    return seen_by(view, load_params())


def load_params() -> Params:
    """Return the checked params.yaml.

    Raises:
        UserError: with one line for each mistake, all at once.
    """
    return validated(Params, read_yaml(PARAMS), PARAMS, ())


def seen_by(view: type[AnyView], params: Params) -> AnyView:
    """Return a view of checked params, with the rows that they name.

    Raises:
        UserError: if there is no such row, or it is not valid.
    """
    everything = {
        **{name: getattr(params, name) for name in Params.model_fields},
        "section": params.sections[params.adapter],
        "dataset": load_row("data", params.data, "data"),
        "base_model": load_row("model", params.model, "model"),
        "frames": params.lsr.frames,
        "pooled": {name: load_row("data", name, "lsr.frames_from") for name in params.lsr.frames_from},
    }
    # Already validated: `model_construct` keeps the frozen sections as they are.
    return view.model_construct(**{name: everything[name] for name in view.model_fields})


def load_row(word: str, name: str, key: str | None = None) -> Any:
    """Return the row `name` of the table for `word` ("data" or "model"); `key` is the params.yaml key that named it.

    A model without a row may be named directly, as a folder or a hub repository.

    Raises:
        UserError: if there is no such row (the message lists the existing ones), or it does not fit the schema.
    """
    path, schema = TABLES[word]
    rows = read_yaml(path)
    if name not in rows:
        where = f"{PARAMS}: {key or word}"
        if schema is ModelRow and (row := ModelRow.named(name, where)):
            return row
        itself = "; or a folder, or a hub repository such as owner/name" if schema is ModelRow else ""
        raise UserError(f"{where}: no row {name!r} in {path}{nearest(name, rows)}; rows: {', '.join(rows)}{itself}")
    return validated(schema, rows[name], path, (name,))


def load_table(path: Path, schema: type[AnyModel]) -> dict[str, AnyModel]:
    """Return all rows of a file, by name.

    Raises:
        UserError: if the file or a row is broken.
    """
    return {name: validated(schema, row, path, (name,)) for name, row in read_yaml(path).items()}


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the contents of a YAML mapping; the result is cached, so copy it before changing it.

    Raises:
        UserError: if there is none, or it is no mapping.
    """
    try:
        content = _parsed(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run from the root of the repository") from None
    except (YAMLError, ValueError) as error:  # ruamel raises a ValueError for a date in month 13
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold keys and values, got {content!r}")
    return content


@lru_cache(maxsize=8)  # one command reads the tables once for each row that it needs
def _parsed(text: bytes) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def validated(schema: type[AnyModel], content: Any, path: Path, prefix: tuple[str, ...]) -> AnyModel:
    """Return content as a model; messages say that it is at `prefix` in a file.

    Raises:
        UserError: if it does not fit the schema, with one line for each mistake.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise UserError("\n".join(mistakes.lines(error, schema, content, path, prefix))) from None
