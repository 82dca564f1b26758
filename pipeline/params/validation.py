"""Validate values with pydantic, and convert its errors to lines in the file's terms with the nearest match."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.core.errors import UserError, nearest
from pipeline.params import labels, renamed

Place = tuple[str, ...]  # keys, from the outermost
AnyModel = TypeVar("AnyModel", bound=BaseModel)
IN_YAML = [  # pydantic's messages in Python's words
    (re.compile(r"a valid dictionary( or .*)?"), "keys with values"),
    (re.compile(r"a valid tuple"), "a list"),
    (re.compile(r"Tuple (should .*) after validation"), r"List \1"),
    (re.compile(r"a valid string"), "text in quotes"),
    (re.compile(r"Unable to extract tag using discriminator '(\w+)'"), r"It needs a key \1"),
    (re.compile(r"Input tag '(.*)' found using '(\w+)' does .* tags: (.*)"), r"No \2 '\1'; there are \3"),
]
OURS = "Value error, "  # prefix that pydantic puts before our validators' messages
EXPECTED = "input should be "


def validate(
    schema: type[AnyModel],
    content: Any,
    path: Path,
    prefix: Place,
) -> AnyModel:
    """Validate content as a model; messages name its place in a file, `prefix`.

    Raises:
        UserError: if it does not fit the schema, with one line for each mistake.
    """
    try:
        return schema.model_validate(content, context=content)
    except ValidationError as error:
        mistakes = dict[Place, list[Any]]()
        for mistake in error.errors(include_url=False):
            # A value that fits no member of a union is reported once, with everything that is allowed.
            mistakes.setdefault(_place(mistake, content), []).append(mistake)
        lines = _lines(mistakes, schema)
        raise UserError("\n".join(_at((*prefix, *place), path, line) for place, line in lines)) from None


def _at(place: Place, path: Path, line: str) -> str:
    keys = f": {'.'.join(place)}" if place else ""
    return f"{path}{keys}: {line}"


def _lines(by_place: Mapping[Place, list[Any]], schema: type[BaseModel]) -> Iterator[tuple[Place, str]]:
    """Yield a line per place with mistakes: the rule, and the value."""
    outer = set[Place]()
    for place in by_place:
        outer |= {place[:length] for length in range(1, len(place))}
    under_former_names = _under_former_names(by_place)
    for place, mistakes in by_place.items():
        if place in under_former_names:
            continue  # it is not missing
        renaming = _renaming(place, mistakes[0])
        if renaming:
            yield place, renaming
        elif mistakes[0]["type"] == "extra_forbidden":
            known = _inner_keys(schema) if len(place) > 1 else schema.model_fields
            yield place, f"no such key{nearest(place[-1], known)}"
        elif place not in outer:  # the line about the inner place is enough
            yield place, _rules(mistakes)


def _under_former_names(places: Iterable[Place]) -> set[Place]:
    """Return the present places of keys that a file has under names of an earlier version."""
    present = set()
    for *outer, key in filter(None, places):
        if key in renamed.KEYS:
            present.add((*outer, renamed.KEYS[key]))
    return present


def _renaming(place: Place, mistake: Any) -> str | None:
    """Return the message for a key or value that was renamed; None for any other."""
    if not place:
        return None
    key = place[-1]
    value = mistake["input"]
    is_key = mistake["type"] == "extra_forbidden" or mistake["loc"][-1] == "[key]"
    if is_key and key in renamed.KEYS:
        return f"this key is now called {renamed.KEYS[key]}"
    if isinstance(value, str) and (key, value) in renamed.VALUES:
        return f"{value} is now called {renamed.VALUES[key, value]}"
    return None


def _inner_keys(schema: type[BaseModel]) -> set[str]:
    """Return the nested keys of a schema, on all levels."""
    keys = set()
    for model in schema.model_json_schema().get("$defs", {}).values():
        keys.update(model.get("properties", ()))
    for form in labels.FORMS:  # a label is in no schema, see there
        keys.update(form.model_fields)
    return keys


def _rules(mistakes: list[Any]) -> str:
    first = mistakes[0]
    if first["type"] == "missing":
        return "this key is required"
    allowed = list[str]()
    rules = []
    for mistake in mistakes:
        rules.append(_in_yaml(mistake["msg"]))
        if mistake["type"] == "literal_error":
            allowed += mistake["ctx"]["expected"].split("'")[1::2]
    rule, *others = dict.fromkeys(rules)
    for other in others:
        rule += f" or {other.removeprefix(EXPECTED)}"
    value = first["input"]
    got = "" if isinstance(value, dict) else f", got {value!r}"
    return f"{rule}{got}{nearest(value, allowed)}"


def _in_yaml(message: str) -> str:
    """Translate a message of pydantic to terms of YAML; messages of our validators are unchanged."""
    if message.startswith(OURS):
        return message.removeprefix(OURS)
    for words, better in IN_YAML:
        message = words.sub(better, message)
    return f"{message[:1].lower()}{message[1:]}"


def _place(mistake: Any, content: Any) -> Place:
    """Return the keys as written in the file: pydantic adds the tags of unions, which are not keys."""
    keys = []
    is_after_tag = False
    for part in mistake["loc"]:
        if not is_after_tag and isinstance(content, dict) and content.get("kind") == part:
            is_after_tag = True  # `kind: package` has a key package, too
        elif _has(content, part):
            content = content[part]
            is_after_tag = False
            keys.append(str(part))
    if mistake["type"] == "missing":
        keys.append(str(mistake["loc"][-1]))
    return tuple(keys)


def _has(content: Any, part: Any) -> bool:
    if isinstance(content, list):
        return isinstance(part, int)
    return isinstance(content, dict) and part in content
