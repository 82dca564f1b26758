"""Turn pydantic's errors about a YAML file into one line per mistake, in the file's terms, with the nearest match."""

from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from pipeline.core.errors import nearest

Place = tuple[str, ...]


def lines(error: ValidationError, schema: type[BaseModel], content: Any, path: Path, prefix: Place) -> Iterator[str]:
    """Yield one line per mistake in `content`, the file's value at `prefix`: the key, the rule, the value."""
    places: dict[Place, list[Any]] = {}
    for mistake in error.errors(include_url=False):
        # A value that fits no member of a union is reported once, with everything that is allowed.
        places.setdefault(_place(mistake, content), []).append(mistake)
    unknown = {
        place: _hint(place, found[0], schema) for place, found in places.items() if _is(found, "extra_forbidden")
    }
    meant = {(*place[:-1], hint) for place, hint in unknown.items()}
    outer = {place[:length] for place in places for length in range(1, len(place))}
    for place, found in places.items():
        shown = f"{path}: {'.'.join((*prefix, *place)) or 'the row'}"
        if place in unknown:
            yield f"{shown}: no such key{f'; did you mean {unknown[place]}?' if unknown[place] else ''}"
        elif place in outer or (_is(found, "missing") and place in meant):
            continue  # the line about the inner place, or about the misspelled key, is enough
        else:
            yield f"{shown}: {_rules(found)}"


def _is(found: list[Any], kind: str) -> bool:
    return found[0]["type"] == kind


def _rules(found: list[Any]) -> str:
    if _is(found, "missing") or _is(found, "union_tag_not_found"):
        return "this key is required"
    rules = list(dict.fromkeys(_rule(mistake) for mistake in found))
    value = found[0]["ctx"]["tag"] if _is(found, "union_tag_invalid") else found[0].get("input")
    allowed = [word for mistake in found for word in _words(mistake)]
    got = "" if isinstance(value, dict) else f", got {value!r}"
    rest = "".join(f" or {rule.removeprefix('input should be ')}" for rule in rules[1:])
    return f"{rules[0]}{rest}{got}{nearest(value, allowed) if allowed else ''}"


def _rule(mistake: Any) -> str:
    """What is allowed, in terms of YAML rather than Python."""
    match mistake["type"]:
        case "model_type" | "model_attributes_type" | "dict_type":
            return "must hold keys and values, or {} for none"
        case "tuple_type":
            return "input should be a list"
        case "too_short":
            return f"input should be a list of at least {mistake['ctx']['min_length']}"
        case "too_long":
            return f"input should be a list of at most {mistake['ctx']['max_length']}"
        case "union_tag_invalid":
            return f"input should be {mistake['ctx']['expected_tags']}"
    rule = mistake["msg"].removeprefix("Value error, ")
    return f"{rule[:1].lower()}{rule[1:]}"


def _words(mistake: Any) -> list[str]:
    key = {"literal_error": "expected", "union_tag_invalid": "expected_tags"}.get(mistake["type"])
    return mistake["ctx"][key].split("'")[1::2] if key else []


def _place(mistake: Any, content: Any) -> Place:
    """The keys as written in the file: pydantic adds the tags of unions, which are not keys."""
    where: list[str] = []
    tag_seen = False
    for part in mistake["loc"]:
        if (
            not tag_seen and isinstance(content, dict) and content.get("kind") == part
        ):  # `kind: package` has a key package
            tag_seen = True
        elif _has(content, part):
            content, tag_seen = content[part], False
            where.append(str(part))
    if mistake["type"] == "missing":
        where.append(str(mistake["loc"][-1]))
    elif mistake["type"].startswith("union_tag"):
        where.append("kind")
    return tuple(where)


def _has(content: Any, part: Any) -> bool:
    return (isinstance(content, dict) and part in content) or (isinstance(content, list) and isinstance(part, int))


def _hint(place: Place, mistake: Any, schema: Any) -> str:
    """The key that was probably meant, or nothing."""
    near = nearest(place[-1], _keys_around(schema, mistake["loc"]))
    return near.removeprefix("; did you mean ").removesuffix("?")


def _keys_around(schema: Any, loc: tuple[int | str, ...]) -> list[str]:
    """The keys that the section around `loc` knows."""
    for part in loc[:-1]:
        if isinstance(schema, type) and issubclass(schema, BaseModel):
            schema = _given(schema.model_fields[str(part)].annotation)
        else:  # a union, and `part` is the tag of a member
            schema = next((member for member in map(_bare, get_args(schema)) if _tag(member) == part), None)
    return list(schema.model_fields) if isinstance(schema, type) and issubclass(schema, BaseModel) else []


def _given(annotation: Any) -> Any:
    """Strip the None from the annotation of an optional section."""
    members = get_args(annotation)
    return members[0] if members[1:] == (NoneType,) else annotation


def _bare(annotation: Any) -> Any:
    return annotation if isinstance(annotation, type) else get_args(annotation)[0]


def _tag(member: Any) -> str:
    """The value of its `kind`, or its own name."""
    return get_args(member.model_fields["kind"].annotation)[0] if "kind" in member.model_fields else member.__name__
