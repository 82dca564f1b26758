"""What MkDocs asks for while it builds the site: tables made from the code, formulas, and files outside of docs/.

A page says `<!-- table: NAME -->` where a table of TABLES belongs. A link may leave docs/, as it does on a code host:
the file that it names becomes part of the site.
"""

import argparse
import dataclasses
import inspect
import json
import os
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from posixpath import normpath, relpath
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from ruamel.yaml import YAML

import lsr
from lsr.__main__ import parser
from pipeline.params.dataset_row import DatasetRow
from pipeline.params.schema import Params
from pipeline.params.sections import PeftParams, Section
from pipeline.params.sources import ModelRow

ROOT = Path(__file__).parent.parent
PAGES = {
    "index.md": "README.md",
    "reference/contributing.md": "CONTRIBUTING.md",
    "reference/security.md": "SECURITY.md",
    "reference/changelog.md": "CHANGELOG.md",
}
OF_PAGES = {name: uri for uri, name in PAGES.items()}
FROM_ROOT = re.compile(r"(?<=\]\()(?P<path>[\w./-]+)(?=[)#])")  # no address of another host
LINK = re.compile(r"(?<=\]\()(?P<path>\.\./[^)#\s]+)")
TABLE = re.compile(r"<!-- table: (\w+) -->")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
FIGURES = re.compile(r"<!-- figures: [\w ,]+ -->\n(.*?)<!-- end -->", re.DOTALL)  # see docs/tables.py
PARAMS = ROOT / "params.yaml"
OPENAPI = ROOT / "lsr/serve/http/openapi.json"
KEY = re.compile(r"(?P<indent>  )?(?P<name>\w+):(?:.*?\s# (?P<comment>.*))?")
COLUMNS = "100"  # of a help text, whatever the terminal's width is


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages of the root, and each file outside of docs/ that a page links to, under its own path."""
    for uri, name in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, uri, content=FROM_ROOT.sub(partial(_from_docs, uri), text)))
    outside = {path for page in files.documentation_pages() for path in _outside(page)}
    for path in sorted(outside - set(PAGES.values())):
        if (ROOT / path).is_file():  # a link to what is not there is left, and reported as such
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in the tables, and lead the links that leave docs/ to the copies in the site."""
    here = page.file.src_uri

    def inside(match: re.Match[str]) -> str:
        path = _in_repository(here, match["path"])
        if path is None:
            return match["path"]
        return relpath(OF_PAGES.get(path, path), Path(here).parent.as_posix())

    narrow = FIGURES.sub(r'<div class="figures" markdown>\n\n\1\n</div>', TABLE.sub(_table, markdown))
    return LINK.sub(inside, narrow)


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write formulas as MathML, which browsers draw without a script."""
    return FORMULA.sub(_formula, html)


def _formula(match: re.Match[str]) -> str:
    display = "block" if match[2] == "[" else "inline"
    text = match[3].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")
    return convert(text, display=display)


def _from_docs(uri: str, match: re.Match[str]) -> str:
    """Rewrite a link of a page at the repository's root to where the site has that page."""
    path = match["path"]
    here = OF_PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else f"../{path}")
    return relpath(here, Path(uri).parent.as_posix())


def _outside(page: File) -> Iterator[str]:
    for match in LINK.finditer(page.content_string):
        if path := _in_repository(page.src_uri, match["path"]):
            yield path


def _in_repository(page: str, link: str) -> str | None:
    """Return the path from the root of the repository of a link that leaves docs/; None of one that does not."""
    path = normpath(Path("docs", page).parent.joinpath(link).as_posix())
    return None if path.startswith(("docs/", "..")) else path


def _table(match: re.Match[str]) -> str:
    if match[1] not in TABLES:
        raise PluginError(f"there is no table {match[1]}, only {', '.join(TABLES)}")
    return TABLES[match[1]]()


def _rows(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def fields_of_the_configuration() -> str:
    """Return the fields of LsrConfig with type, default and help."""
    rows = []
    for field in dataclasses.fields(lsr.LsrConfig):
        if field.name in lsr.LsrConfig.__annotations__:  # not one that PEFT's classes have
            default = field.default_factory() if callable(field.default_factory) else field.default
            kind = field.type.__name__ if isinstance(field.type, type) else field.type
            rows.append((f"`{field.name}`", f"`{kind}`", f"`{default!r}`", field.metadata["help"]))
    return _rows(("field", "type", "default", ""), rows)


def params() -> str:
    """Return a table for each section of params.yaml with its values and comments, and of the words beside them."""
    values, comments = YAML(typ="safe", pure=True).load(PARAMS.read_text(encoding="utf-8")), comments_of_params()
    kinds = {name: field.annotation for name, field in Params.model_fields.items() if name != "methods"}
    sections = {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Section)}
    parts = [_keys(Params, kinds.keys() - sections.keys(), values, comments)]
    for name, section in sections.items():
        if section.model_fields:
            own = {key.removeprefix(f"{name}."): said for key, said in comments.items()}
            table = _keys(section, section.model_fields, values[name], own)
            parts += [f"\n## `{name}`\n", inspect.getdoc(section) or "", "", table]
    parts += ["\n## Other methods\n", inspect.getdoc(PeftParams) or "", ""]
    parts += [_keys(PeftParams, PeftParams.model_fields), "", "In the file are:", ""]
    rows = []
    for name, section in values.items():
        if name not in kinds:
            keys = {key: value for key, value in section.items() if key != "type"}
            said = [comments.get(name, "").rstrip(":")]
            said += [f"`{key}`: {comments[f'{name}.{key}']}" for key in keys if f"{name}.{key}" in comments]
            rows.append((f"`{name}`", f"`{section['type']}`", f"`{_value(keys)}`", "; ".join(filter(None, said))))
    return "\n".join([*parts, _rows(("section", "type", "other keys", ""), rows)])


def comments_of_params() -> dict[str, str]:
    """Return the comments of params.yaml by key, as `lsr.alpha`; of a section, the one above it or in its line."""
    comments, section, above = {}, "", ""
    for line in PARAMS.read_text(encoding="utf-8").splitlines():
        if key := KEY.match(line):
            section, name = (section, f"{section}.{key['name']}") if key["indent"] else (key["name"], key["name"])
            comments[name] = key["comment"] or ("" if key["indent"] else above)
        above = line.removeprefix("# ") if line.startswith("# ") else ""
    return {name: comment for name, comment in comments.items() if comment}


def _keys(
    model: type[BaseModel],
    names: Container[str],
    values: Mapping[str, Any] | None = None,
    comments: Mapping[str, str] | None = None,
) -> str:
    """Return a table of the keys of these names: the value in a file or else the default, what they take, and why."""
    schema = model.model_json_schema()
    rows = []
    for key, taken in schema["properties"].items():
        if key in names:
            default = "required" if key in schema.get("required", ()) else f"`{_value(taken.get('default'))}`"
            said = (comments or {}).get(key) or taken.get("description", "")
            shown = f"`{_value(values[key])}`" if values and key in values else default
            rows.append((f"`{key}`", shown, _kind(taken), said))
    return _rows(("key", "default", "values", ""), rows)


def _value(value: Any) -> str:
    """Return a value as it stands in YAML."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_value(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return value if isinstance(value, str) else json.dumps(value)


def _kind(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return f"a mapping: {schema['$ref'].rpartition('/')[2]}"
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(_kind(choice) for choice in choices)
    if schema.get("type") == "array":
        return f"a list of {_kind(schema.get('items') or schema['prefixItems'][0])}"
    names = {"integer": "integer", "number": "number", "string": "text", "boolean": "`true`, `false`", "null": "none"}
    return names.get(schema.get("type", ""), "a mapping") + _bounds(schema)


def _bounds(schema: Mapping[str, Any]) -> str:
    """Return the bounds of a number, as in ` in [0, 1)`."""
    low, high = (
        schema.get("minimum", schema.get("exclusiveMinimum")),
        schema.get("maximum", schema.get("exclusiveMaximum")),
    )
    if low is None or high is None:
        return "" if low is None else f" ≥ {low:,.15g}"
    opening, closing = "[" if "minimum" in schema else "(", "]" if "maximum" in schema else ")"
    return f" in {opening}{low:,.15g}, {high:,.15g}{closing}"


def commands() -> str:
    """Return the help of every command of `lsr`."""
    os.environ["COLUMNS"] = COLUMNS
    (subparsers,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    parts = [
        f"## {name}\n\n```text\n{command.format_help().strip()}\n```\n" for name, command in subparsers.choices.items()
    ]
    return "\n".join(parts)


def routes() -> str:
    """Return what the server answers, by request and status, from its own description."""
    described = json.loads(OPENAPI.read_text(encoding="utf-8"))
    rows = []
    for path, its in described["paths"].items():
        for method in (name for name in its if name != "parameters"):
            answers = []
            for status, answer in its[method]["responses"].items():
                common = described["components"]["responses"].get(answer.get("$ref", "").rpartition("/")[2], answer)
                answers.append(f"{status}: {common['description']}")
            rows.append((f"`{method.upper()} {path}`", its[method]["summary"], "; ".join(answers)))
    return _rows(("request", "", "answers"), rows)


TABLES: Mapping[str, Callable[[], str]] = {
    "configuration": fields_of_the_configuration,
    "params": params,
    "dataset_row": lambda: _keys(DatasetRow, DatasetRow.model_fields),
    "model_row": lambda: _keys(ModelRow, ModelRow.model_fields),
    "commands": commands,
    "routes": routes,
}
