"""Turn pydantic's errors about a YAML file into one line per mistake, in the file's terms, with the nearest match."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from pipeline.core.errors import nearest

Place = tuple[str, ...]
UNKNOWN = ("extra_forbidden", "no_method")


def lines(error: ValidationError, schema: type[BaseModel], content: Any, path: Path, prefix: Place) -> Iterator[str]:
    """Yield one line per mistake in `content`, the file's value at `prefix`: the key, the rule, the value."""
    places: dict[Place, list[Any]] = {}
    for mistake in error.errors(include_url=False):
        # A value that fits no member of a union is reported once, with everything that is allowed.
        places.setdefault(_place(mistake, content), []).append(mistake)
    unknown = {place: _hint(place, rules[0], schema) for place, rules in places.items() if _is(rules, *UNKNOWN)}
    meant = {(*place[:-1], hint) for place, hint in unknown.items()}
    outer = {place[:length] for place in places for length in range(1, len(place))}
    for place, rules in places.items():
        shown = ": ".join(filter(None, [str(path), ".".join((*prefix, *place))]))
        if place in unknown:
            is_section = _is(rules, "no_method") and isinstance(rules[0]["input"], dict)
            near = f"; did you mean {unknown[place]}?" if unknown[place] else ""
            yield f"{shown}: no such key{near}{'; the section of a method has a type' if is_section else ''}"
        elif place in outer or (_is(rules, "missing") and place in meant):
            continue  # the line about the inner place, or about the misspelled key, is enough
        else:
            yield f"{shown}: {_rules(rules)}"


def _is(mistakes: list[Any], *kinds: str) -> bool:
    return mistakes[0]["type"] in kinds


def _rules(mistakes: list[Any]) -> str:
    if _is(mistakes, "missing", "union_tag_not_found"):
        return "this key is required"
    rules = list(dict.fromkeys(_rule(mistake) for mistake in mistakes))
    value = mistakes[0]["ctx"]["tag"] if _is(mistakes, "union_tag_invalid") else mistakes[0].get("input")
    allowed = [word for mistake in mistakes for word in _words(mistake)]
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


def _hint(place: Place, mistake: Any, schema: type[BaseModel]) -> str:
    """The key that was probably meant, or nothing."""
    known = schema.model_fields if mistake["type"] == "no_method" else _keys_around(schema, mistake["loc"])
    return nearest(place[-1], known).removeprefix("; did you mean ").removesuffix("?")


def _keys_around(schema: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The keys that may stand at `loc`: the outermost ones, or those of any form of the section around it."""
    models = [schema] if len(loc) == 1 else _models_in(schema.model_fields[str(loc[0])].annotation)
    return [name for model in models for name in model.model_fields]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models in an annotation, and those in their fields."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from _models_in(field.annotation)
    for part in get_args(annotation):
        yield from _models_in(part)
