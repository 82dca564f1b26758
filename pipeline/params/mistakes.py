"""Turn pydantic's errors about a YAML file into one line per mistake, in the file's terms, with the nearest match."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.core.errors import nearest
from pipeline.params import labels

Place = tuple[str, ...]
IN_YAML = [  # what pydantic says in Python's words
    (re.compile(r"a valid dictionary( or .*)?"), "keys with values"),
    (re.compile(r"a valid tuple"), "a list"),
    (re.compile(r"Tuple (should .*) after validation"), r"List \1"),
    (re.compile(r"a valid string"), "text in quotes"),
    (re.compile(r"Unable to extract tag using discriminator '(\w+)'"), r"It needs a key \1"),
    (re.compile(r"Input tag '(.*)' found using '(\w+)' does .* tags: (.*)"), r"No \2 '\1'; there are \3"),
]


def lines(error: ValidationError, schema: type[BaseModel], content: Any, path: Path, prefix: Place) -> Iterator[str]:
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
