"""What MkDocs asks for while it builds the site: tables made from the code, formulas, and files outside of docs/.

A page says `<!-- table: NAME -->` where a table of TABLES belongs. A link may leave docs/, as it does on a code host:
the file that it names becomes part of the site.
"""

import argparse
import dataclasses
import inspect
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

import lsr
from lsr.__main__ import parser
from pipeline.params.dataset_row import DatasetRow
from pipeline.params.methods import PeftParams
from pipeline.params.model_row import ModelRow
from pipeline.params.schema import Params
from pipeline.params.sections import Section

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

    return LINK.sub(inside, TABLE.sub(_table, markdown))


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write formulas as MathML, which browsers draw without a script."""
    return FORMULA.sub(_formula, html)


def _formula(match: re.Match[str]) -> str:
    display = "block" if match[2] == "[" else "inline"
    text = match[3].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")
    return convert(text, display=display)


def _from_docs(uri: str, match: re.Match[str]) -> str:
    """Lead a link of a page that lies at the root of the repository as from where the site has the page."""
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
    """Return a table for each section of params.yaml, and one for the words beside them."""
    kinds = {name: field.annotation for name, field in Params.model_fields.items() if name != "methods"}
    sections = {name: kind for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Section)}
    parts = [_keys(Params, kinds.keys() - sections.keys())]
    titled: dict[str, type[BaseModel]] = {f"`{name}`": kind for name, kind in sections.items()}
    titled["Other methods"] = PeftParams
    for title, section in titled.items():
        if section.model_fields:
            parts += [f"\n## {title}\n", inspect.getdoc(section) or "", "", _keys(section, section.model_fields)]
    return "\n".join(parts)


def _keys(model: type[BaseModel], names: Container[str]) -> str:
    """Return a table of the keys of these names, and what they take in the words of their JSON schema."""
    properties = model.model_json_schema()["properties"].items()
    rows = [(f"`{key}`", _kind(schema), schema.get("description", "")) for key, schema in properties if key in names]
    return _rows(("key", "values", ""), rows)


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
    """Return the help of every command of `python -m lsr`."""
    os.environ["COLUMNS"] = COLUMNS
    (subparsers,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    parts = [
        f"## {name}\n\n```text\n{command.format_help().strip()}\n```\n" for name, command in subparsers.choices.items()
    ]
    return "\n".join(parts)


TABLES: Mapping[str, Callable[[], str]] = {
    "configuration": fields_of_the_configuration,
    "params": params,
    "dataset_row": lambda: _keys(DatasetRow, DatasetRow.model_fields),
    "model_row": lambda: _keys(ModelRow, ModelRow.model_fields),
    "commands": commands,
}
