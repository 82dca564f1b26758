"""Read and check params.yaml and the tables. This is the only module that opens these files.

`load(View)` checks all of them, then returns only the fields of the stage's view. A mistake is a line in the file's
terms, with the nearest match, in place of pydantic's errors.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.composer import MaxDepthExceededError
from ruamel.yaml.error import YAMLError

from pipeline.core import artifacts
from pipeline.core.errors import UserError, nearest
from pipeline.params import labels
from pipeline.params.dataset_row import DatasetRow
from pipeline.params.effects import idle_in_file
from pipeline.params.schema import PARAMS, TABLES, Params, View
from pipeline.params.sources import NAME, ModelRow, TableRow

Place = tuple[str, ...]
IN_YAML = [  # what pydantic says in Python's words
    (re.compile(r"a valid dictionary( or .*)?"), "keys with values"),
    (re.compile(r"a valid tuple"), "a list"),
    (re.compile(r"Tuple (should .*) after validation"), r"List \1"),
    (re.compile(r"a valid string"), "text in quotes"),
    (re.compile(r"Unable to extract tag using discriminator '(\w+)'"), r"It needs a key \1"),
    (re.compile(r"Input tag '(.*)' found using '(\w+)' does .* tags: (.*)"), r"No \2 '\1'; there are \3"),
]
DEEPEST = 50  # values within values: far more than any setting has, and less than Python can parse
TOO_DEEP = f"more than {DEEPEST} values within one another"
AnyView = TypeVar("AnyView", bound=View)
AnyModel = TypeVar("AnyModel", bound=BaseModel)


def load(view: type[AnyView]) -> AnyView:
    """Check all of params.yaml and of the tables, then return the part that `view` sees.

    Raises:
        UserError: with one line for each mistake, all at once.
    """
    params, *_ = all_of([load_params, *(partial(check_rows, word, read_yaml(PARAMS).get(word)) for word in TABLES)])
    if idle := [f"{PARAMS}: {one.line}" for one in idle_in_file(params, load_row("data", params.data))]:
        raise UserError("\n".join(idle))
    return seen_by(view, params)


def all_of(checks: Iterable[Callable[[], Any]]) -> list[Any]:
    """Return the results of all checks.

    Raises:
        UserError: with the lines of all that have failed.
    """
    results, lines = [], []
    for check in checks:
        try:
            results.append(check())
        except UserError as error:
            lines += str(error).split("\n")
    if lines:
        raise UserError("\n".join(dict.fromkeys(lines)))
    return results


def load_params() -> Params:
    """Return the checked params.yaml."""
    return validated(Params, read_yaml(PARAMS), PARAMS, ())


def changed(overrides: Mapping[str, Any], view: type[AnyView], path: Path = PARAMS, place: Place = ()) -> AnyView:
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


def seen_by(view: type[AnyView], params: Params) -> AnyView:
    """Return a view of checked params, with the rows that they name."""
    everything = {
        **{name: getattr(params, name) for name in Params.model_fields},
        "section": params.sections[params.adapter],
        "dataset": load_row("data", params.data),
        "base_model": load_row("model", params.model),
    }
    if everything["dataset"].tenant is not None and params.tenants.folder:
        everything["section"] = params.head  # what they share is not trained
    # Already validated: `model_construct` keeps the frozen sections as they are.
    return view.model_construct(**{name: everything[name] for name in view.model_fields})


def load_row(word: str, name: str) -> Any:
    """Return the row `name` for `word`, a key of params.yaml: data or model.

    A model without a row may be named directly, as a folder or a hub repository.

    Raises:
        UserError: if there is no such row (the message lists the existing ones), or it does not fit the schema.
    """
    where, rows = f"{PARAMS}: {word}", dict(_rows(word))
    if name in rows:
        return _row(word, name, rows[name])
    if word == "model" and (row := ModelRow.named(name, where)):
        return row
    what, other = {
        "data": ("row", "python -m pipeline.add FILE makes one"),
        "model": ("row or folder", "or a hub repository such as owner/name"),
    }[word]
    if artifacts.is_temporary_copy():
        other = f"a temporary copy has {TABLES[word].own} only after `git add`"
    raise UserError(f"{where}: no {what} {name!r}{nearest(name, rows)}; rows: {', '.join(rows)}; {other}")


def check_rows(word: str, chosen: object = None) -> list[str]:
    """Check all rows for `word`, and what is chosen if it is the name of none; return the names of rows."""
    named = _rows(word)
    names = [name for name, _ in named]
    others = [chosen] if isinstance(chosen, str) and chosen not in names else []
    all_of([*(partial(_row, word, *one) for one in named), *(partial(load_row, word, one) for one in others)])
    return names


def _rows(word: str) -> list[tuple[str, Path]]:
    """Return the name and the file of each row: the user's own first, if there are any."""
    table = TABLES[word]
    files = [table.own, table.built_in] if table.own.is_file() else [table.built_in]
    return [(name, path) for path in files for name in read_yaml(path)]


def _row(word: str, name: str, path: Path) -> TableRow:
    table = TABLES[word]
    if word == "data" and not re.fullmatch(NAME, str(name)):
        raise UserError(f"{path}: {name!r}: the name of a row of data has letters, digits, - and _ only")
    if path == table.own and name in read_yaml(table.built_in):
        raise UserError(f"{path}: {name}: {table.built_in} has a row of this name too; rename yours")
    row = validated(table.schema, read_yaml(path)[name], path, (str(name),))
    if isinstance(row, DatasetRow) and path == table.own:
        row = row.of_ones_own()
    row._where = str(path)
    return row


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the contents of a YAML mapping; the result is cached, so copy it before changing it.

    Raises:
        UserError: if there is none, or it is no mapping.
    """
    try:
        return parsed(path.read_bytes(), path)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run from the root of the repository") from None


def parsed(text: bytes, path: Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file; the result is cached, so copy it before changing it.

    Raises:
        UserError: if it is no mapping.
    """
    try:
        content = _parsed(text)
    except MaxDepthExceededError as error:
        raise UserError(f"{path}: line {error.problem_mark.line + 1}: {TOO_DEEP}") from None
    except (YAMLError, ValueError) as error:  # ruamel raises a ValueError for a date in month 13
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{path}: {TOO_DEEP}") from None
    if content is None:  # nothing but comments
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold keys and values, got {content!r}")
    return content


def by_dotted_key(value: Any, key: str) -> dict[str, Any]:
    """Return the values of nested sections by their dotted keys, each of which begins with `key`."""
    if not isinstance(value, dict):
        return {key: value}
    values = dict[str, Any]()
    for name, inner in value.items():
        values |= by_dotted_key(inner, f"{key}.{name}")
    return values


@lru_cache(maxsize=8)  # one command reads the tables once for each row that it needs
def _parsed(text: bytes) -> Any:
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = DEEPEST
    content = yaml.load(text)
    if _is_too_deep(content):
        raise RecursionError
    return content


def _is_too_deep(content: Any) -> bool:
    """Return whether more than DEEPEST values lie within one another, also by aliases, which may form a circle."""
    level = [content] if isinstance(content, dict | list) else []
    for _ in range(DEEPEST + 1):
        held = (value.values() if isinstance(value, dict) else value for value in level)
        inner = {id(value): value for values in held for value in values if isinstance(value, dict | list)}
        level = list(inner.values())
        if not level:
            return False
    return True


def validated(schema: type[AnyModel], content: Any, path: Path, prefix: Place) -> AnyModel:
    """Return content as a model; messages say that it is at `prefix` in a file.

    Raises:
        UserError: if it does not fit the schema, with one line for each mistake.
    """
    try:
        return schema.model_validate(content, context=content)
    except ValidationError as error:
        raise UserError("\n".join(_lines(error, schema, content, path, prefix))) from None


def _lines(error: ValidationError, schema: type[BaseModel], content: Any, path: Path, prefix: Place) -> Iterator[str]:
    """Yield one line per mistake in `content`, the file's value at `prefix`: the key, the rule, the value."""
    places: dict[Place, list[Any]] = {}
    for mistake in error.errors(include_url=False):
        # A value that fits no member of a union is reported once, with everything that is allowed.
        places.setdefault(_place(mistake, content), []).append(mistake)
    models = schema.model_json_schema().get("$defs", {}).values()
    inner = {name for model in models for name in model.get("properties", ())}
    inner |= {name for form in labels.FORMS for name in form.model_fields}  # a label is in no schema, see there
    outer = {place[:length] for place in places for length in range(1, len(place))}
    for place, mistakes in places.items():
        shown = ": ".join(filter(None, [str(path), ".".join((*prefix, *place))]))
        if mistakes[0]["type"] == "extra_forbidden":
            yield f"{shown}: no such key{nearest(place[-1], inner if len(place) > 1 else schema.model_fields)}"
        elif place not in outer:  # the line about the inner place is enough
            yield f"{shown}: {_rules(mistakes)}"


def _rules(mistakes: list[Any]) -> str:
    if mistakes[0]["type"] == "missing":
        return "this key is required"
    first, *others = dict.fromkeys(_said(mistake["msg"]) for mistake in mistakes)
    rest = "".join(f" or {rule.removeprefix('input should be ')}" for rule in others)
    value = mistakes[0]["input"]
    literals = [mistake["ctx"]["expected"] for mistake in mistakes if mistake["type"] == "literal_error"]
    allowed = [word for expected in literals for word in expected.split("'")[1::2]]
    got = "" if isinstance(value, dict) else f", got {value!r}"
    return f"{first}{rest}{got}{nearest(value, allowed)}"


def _said(message: str) -> str:
    ours = message.removeprefix("Value error, ")
    if ours != message:
        return ours
    for said, better in IN_YAML:
        message = said.sub(better, message)
    return f"{message[:1].lower()}{message[1:]}"


def _place(mistake: Any, content: Any) -> Place:
    """The keys as written in the file: pydantic adds the tags of unions, which are not keys."""
    where: list[str] = []
    is_after_tag = False
    for part in mistake["loc"]:
        if not is_after_tag and isinstance(content, dict) and content.get("kind") == part:
            is_after_tag = True  # `kind: package` has a key package, too
        elif (isinstance(content, dict) and part in content) or (isinstance(content, list) and isinstance(part, int)):
            content, is_after_tag = content[part], False
            where.append(str(part))
    return (*where, str(mistake["loc"][-1])) if mistake["type"] == "missing" else tuple(where)
