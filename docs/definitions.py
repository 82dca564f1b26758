"""The tables of the reference pages that are made from the code: parameters, requests and fields.

`python -m docs.tables` writes them into the pages. What they read of files comes as text, so that a test can give them
the committed ones.
"""

import dataclasses
import inspect
import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from ruamel.yaml import YAML

import lsr
from docs.markdown import table
from pipeline.params.schema import Params
from pipeline.params.sections import PeftParams, Section

KEY = re.compile(r"(?P<indent>  )?(?P<name>\w+):(?:.*?\s# (?P<comment>.*))?")
OF_KEYS = ("key", "default", "values", "")
OF_KEYS_INSIDE = ("in", *OF_KEYS)
TYPES = {"integer": "integer", "number": "number", "string": "text", "boolean": "`true`, `false`", "null": "none"}


def configuration() -> Iterator[str]:
    """Yield the fields of LsrConfig with type, default and help."""
    rows = []
    for field in dataclasses.fields(lsr.LsrConfig):
        if field.name in lsr.LsrConfig.__annotations__:  # not one that PEFT's classes have
            default = field.default_factory() if callable(field.default_factory) else field.default
            kind = field.type.__name__ if isinstance(field.type, type) else field.type
            rows.append((f"`{field.name}`", f"`{kind}`", f"`{default!r}`", field.metadata["help"]))
    return table(("field", "type", "default", ""), rows)


def params(text: str) -> Iterator[str]:
    """Yield a table for each section of a params.yaml with its values and comments, and one of the other methods."""
    values = YAML(typ="safe", pure=True).load(text)
    comments = comments_of(text)
    fields = {name: field.annotation for name, field in Params.model_fields.items() if name != "methods"}
    sections = {name: kind for name, kind in fields.items() if isinstance(kind, type) and issubclass(kind, Section)}
    yield from keys_of(Params, fields.keys() - sections.keys(), values, comments)
    for name, section in sections.items():
        if section.model_fields:
            own = {key.removeprefix(f"{name}."): comment for key, comment in comments.items()}
            yield from ("", f"## `{name}`", "", inspect.getdoc(section) or "", "")
            yield from keys_of(section, section.model_fields, values[name], own)
    yield from ("", "## Other methods", "", inspect.getdoc(PeftParams) or "", "")
    yield from keys_of(PeftParams, PeftParams.model_fields)
    yield from ("", "In the file are:", "")
    others = [name for name in values if name not in fields]
    rows = [(f"`{name}`", *of_section(name, values[name], comments)) for name in others]
    yield from table(("section", "type", "other keys", ""), rows)


def comments_of(text: str) -> dict[str, str]:
    """Return the comments of a params.yaml by key, as `lsr.alpha`; of a section, the one above it or in its line."""
    comments = dict[str, str]()
    section = ""
    above = ""
    for line in text.splitlines():
        key = KEY.match(line)
        if key and key["indent"]:
            comments[f"{section}.{key['name']}"] = key["comment"] or ""
        elif key:
            section = key["name"]
            comments[section] = key["comment"] or above
        above = line.removeprefix("# ") if line.startswith("# ") else ""
    return {name: comment for name, comment in comments.items() if comment}


def of_section(name: str, section: Mapping[str, Any], comments: Mapping[str, str]) -> tuple[str, str, str]:
    """Return type, other keys and comments of the section of a method, as cells of a table."""
    keys = {key: value for key, value in section.items() if key != "type"}
    notes = [comments.get(name, "").rstrip(":")]
    for key in keys:
        if f"{name}.{key}" in comments:
            notes.append(f"`{key}`: {comments[f'{name}.{key}']}")
    return f"`{section['type']}`", f"`{in_yaml(keys)}`", "; ".join(filter(None, notes))


def keys_inside(forms: Mapping[str, type[BaseModel]]) -> Iterator[str]:
    """Yield a table of the keys inside the keys of an entry; `forms` has what a key may hold by its name in a table."""
    rows = []
    for form, model in forms.items():
        for row in rows_of(model, model.model_json_schema()["properties"]):
            rows.append((form, *row))
    return table(OF_KEYS_INSIDE, rows)


def keys_of(
    model: type[BaseModel],
    names: Collection[str],
    values: Mapping[str, Any] | None = None,
    comments: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Yield a table of the keys of these names, as `rows_of` describes them."""
    return table(OF_KEYS, rows_of(model, names, values, comments))


def rows_of(
    model: type[BaseModel],
    names: Collection[str],
    values: Mapping[str, Any] | None = None,
    comments: Mapping[str, str] | None = None,
) -> Iterator[tuple[str, str, str, str]]:
    """Yield each key of these names: the value in a file or else the default, what is allowed, and why."""
    schema = model.model_json_schema()
    for key, allowed in schema["properties"].items():
        if key not in names:
            continue
        shown = "required" if key in schema.get("required", ()) else f"`{in_yaml(allowed.get('default'))}`"
        if values and key in values:
            shown = f"`{in_yaml(values[key])}`"
        comment = (comments or {}).get(key) or allowed.get("description", "")
        yield f"`{key}`", shown, kind_of(allowed), comment


def in_yaml(value: Any) -> str:
    """Return a value as it stands in YAML."""
    if isinstance(value, dict) and value:
        return ", ".join(f"{key}: {in_yaml(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return f"[{', '.join(map(in_yaml, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


def kind_of(schema: Mapping[str, Any]) -> str:
    """Return in words which values a JSON schema allows."""
    if "$ref" in schema:
        return "keys, see below"
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        kinds = dict.fromkeys(kind_of(choice) for choice in choices)
        return " or ".join(kinds)
    if schema.get("type") == "array":
        return f"a list of {kind_of(schema.get('items') or schema['prefixItems'][0])}"
    return TYPES.get(schema.get("type", ""), "a mapping") + bounds_of(schema)


def bounds_of(schema: Mapping[str, Any]) -> str:
    """Return the bounds of a number, as in ` in [0, 1)`."""
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if low is None:
        return ""
    if high is None:
        sign = "≥" if "minimum" in schema else ">"
        return f" {sign} {low:,.15g}"
    opening = "[" if "minimum" in schema else "("
    closing = "]" if "maximum" in schema else ")"
    return f" in {opening}{low:,.15g}, {high:,.15g}{closing}"


def routes(text: str) -> Iterator[str]:
    """Yield what the server answers, by request and status, from its description in OpenAPI's form."""
    described = json.loads(text)
    shared = described["components"]["responses"]
    rows = []
    for path, methods in described["paths"].items():
        for method, request in methods.items():
            if method == "parameters":
                continue
            answers = []
            for status, answer in request["responses"].items():
                resolved = shared.get(answer.get("$ref", "").rpartition("/")[2], answer)
                answers.append(f"{status}: {resolved['description']}")
            rows.append((f"`{method.upper()} {path}`", request["summary"], "; ".join(answers)))
    return table(("request", "", "answers"), rows)
