"""Read and check params.yaml and the rows it selects. This is the only module that opens these files.

`load(View)` checks the whole file, then returns only the fields of the stage's view.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

from pipeline.core.errors import UserError, first_line, nearest
from pipeline.core.files import read_small
from pipeline.params import mistakes
from pipeline.params.methods import LsrParams
from pipeline.params.rows import ModelRow
from pipeline.params.schema import PARAMS, TABLES, Common, Params, View

MOST_BYTES, MOST_DEEP, MOST_ALIASES = 1_000_000, 20, 20
LONGEST_SCALAR = 1000  # characters without quotes: Python parses long integers in quadratic time
AnyView = TypeVar("AnyView", bound=View)
AnyModel = TypeVar("AnyModel", bound=BaseModel)


def load(view: type[AnyView]) -> AnyView:
    """Check all of params.yaml and the selected rows, then return the part that `view` sees.

    Raises:
        UserError: with one line for each mistake, all at once.
    """
    return seen_by(view, _validate(Params, read_yaml(PARAMS), PARAMS, ()), load_row)


def seen_by(view: type[AnyView], params: Common, row_of: Callable[[str, str, str], Any]) -> AnyView:
    """Return a view of checked params; `row_of` is `load_row` or equivalent."""
    lsr = getattr(params, LsrParams.word)
    everything = {
        **{name: getattr(params, name) for name in type(params).model_fields},
        "section": getattr(params, params.adapter).filled(),
        "dataset": row_of("data", params.data, "data"),
        "base_model": row_of("model", params.model, "model"),
        "frames": lsr.frames,
        "pooled": {name: row_of("data", name, "lsr.frames_from") for name in lsr.frames_from},
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
    return _validate(schema, rows[name], path, (name,))


def load_rows(word: str, path: Path | None = None) -> dict[str, Any]:
    """Return all rows of the table for `word` ("data" or "model"), or of a similar file, by name.

    Raises:
        UserError: if the table or a row is broken.
    """
    usual, schema = TABLES[word]
    return load_table(path or usual, schema)


def load_table(path: Path, schema: type[AnyModel]) -> dict[str, AnyModel]:
    """Return all rows of a file, by name.

    Raises:
        UserError: if the file or a row is broken.
    """
    return {name: _validate(schema, row, path, (name,)) for name, row in read_yaml(path).items()}


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the contents of a YAML mapping; the result is cached, so copy it before changing it.

    Raises:
        UserError: if it is not a mapping, cannot be read, or is larger or deeper than anyone would write by hand.
    """
    try:
        content = _parsed(read_small(path, MOST_BYTES))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run from the root of the repository") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else "?"
        raise UserError(f"{path}: not valid YAML: line {line}: {' '.join(str(error.problem).split())}") from None
    except YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except _TooMuchError as error:
        raise UserError(f"{path}: {error}") from None
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        # ruamel's errors for values that do not fit their type: a date in month 13, a number of 5,000 digits.
        raise UserError(f"{path}: not valid YAML: {first_line(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold keys and values, got {content!r}")
    return content


@lru_cache(maxsize=8)  # one command reads the tables once for each row that it needs, and the result is never modified
def _parsed(text: bytes) -> Any:
    """Parse the text of a file.

    Raises:
        _TooMuchError: if it is valid YAML that nobody would write by hand; ruamel's own errors pass through.
    """
    _check_events(text)
    content = YAML(typ="safe", pure=True).load(text)
    _check_words(content, "")
    return content


class _TooMuchError(Exception):
    """Valid YAML that nobody would write by hand."""


def _check_events(content: bytes) -> None:
    """Refuse small files that would expand into large or deep objects, before any object is built.

    An alias by itself costs nothing, but its target is visited once per use, so aliases of aliases grow exponentially:
    the target of an alias may not contain another one.

    Raises:
        _TooMuchError: names the line.
    """
    anchors: list[bool] = []  # for each open collection, whether it has an anchor
    aliases = 0
    for event in YAML(typ="safe", pure=True).parse(content):
        line = event.start_mark.line + 1
        if getattr(event, "tag", None) is not None:
            raise _TooMuchError(f"line {line}: a tag; values are written without one, such as 1, 1.5, true or [a, b]")
        if isinstance(event, CollectionStartEvent):
            anchors.append(event.anchor is not None)
            if len(anchors) > MOST_DEEP:
                raise _TooMuchError(f"line {line}: over {MOST_DEEP} levels deep; at most that is allowed")
        elif isinstance(event, CollectionEndEvent):
            anchors.pop()
        elif isinstance(event, AliasEvent):
            aliases += 1
            if any(anchors):
                raise _TooMuchError(f"line {line}: *{event.anchor} is in what another alias stands for; write it out")
            if aliases > MOST_ALIASES:
                raise _TooMuchError(f"line {line}: over {MOST_ALIASES} aliases; write some of them out")
        elif isinstance(event, ScalarEvent) and event.implicit[0] and len(event.value) > LONGEST_SCALAR:
            raise _TooMuchError(f"line {line}: a value of over {LONGEST_SCALAR} characters without quotes")


def _check_words(content: Any, where: str) -> None:
    """Refuse keys that are not strings: a row named 1 or true would have a different name for each reader.

    Raises:
        _TooMuchError: names the key.
    """
    if isinstance(content, dict):
        for key, value in content.items():
            if not isinstance(key, str):
                raise _TooMuchError(
                    f"{where}{key!r}: a key must be a word, got a {type(key).__name__}; put it in quotes"
                )
            _check_words(value, f"{where}{key}.")
    elif isinstance(content, list):
        for position, value in enumerate(content):
            _check_words(value, f"{where}{position}.")


def _validate(schema: type[AnyModel], content: Any, path: Path, prefix: tuple[str, ...]) -> AnyModel:
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise UserError("\n".join(mistakes.lines(error, schema, content, path, prefix))) from None
