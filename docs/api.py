"""Write docs/api.md, the public names of `lsr` from their own docstrings: `make docs`, or `python docs/api.py`.

Signatures and fields are those of the source, not of the running interpreter, so that the page is the same for every
Python.
"""

import ast
import dataclasses
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

import lsr
from lsr.convert.certificate import Certificate, LayerCertificate
from lsr.convert.export import Rounding
from lsr.convert.files import InputError
from lsr.convert.inspect import AdapterReport, LayerReport
from lsr.convert.pool import PooledFrames

PAGE = Path(__file__).with_name("api.md")
GROUPS = {
    "Adapt a model": (
        lsr.LsrConfig,
        lsr.start_from_examples,
        lsr.allocate_ranks,
        lsr.LsrModel,
        lsr.LsrModel.add_weighted_adapter,
    ),
    "After training": (
        lsr.inspect_adapter,
        lsr.export_lora,
        lsr.export_merged,
        lsr.prune_adapter,
        lsr.compress_lora,
        lsr.pool_frames,
    ),
    "What they return and raise": (
        AdapterReport,
        LayerReport,
        Rounding,
        Certificate,
        LayerCertificate,
        PooledFrames,
        InputError,
    ),
}
INTRODUCTION = """# The API of lsr

`import lsr` registers the method with PEFT; from there on `peft.get_peft_model(model, lsr.LsrConfig(...))` and
`peft.PeftModel.from_pretrained` do the rest. These are all names beside them. They follow semantic versioning (before
1.0.0, what breaks code raises the minor version); what is not on this page may change in any version.

The page is written by `make docs` from the docstrings.
"""


def page() -> str:
    """Return the whole page."""
    parts = [INTRODUCTION]
    for title, members in GROUPS.items():
        parts += [f"## {title}\n", *map(_entry, members)]
    return "\n".join(parts)


def _entry(member: Any) -> str:
    public = member.__qualname__.partition(".")[0] in lsr.__all__
    name = f"{'lsr' if public else member.__module__}.{member.__qualname__}"
    parts = [f"### `{name}`\n", *_form(member, name), _prose(inspect.getdoc(member) or "")]
    if member is lsr.LsrConfig:
        parts.append(_table_of_fields(member))
    return "\n".join(parts)


def _form(member: Any, name: str) -> list[str]:
    """Return a code block: the signature of a function, the fields of what one returns; none for the others."""
    node = _tree(member)
    if isinstance(node, ast.FunctionDef):
        return [f"```python\n{_signature(node, name)}\n```\n"]
    lines = inspect.getsource(member).splitlines()
    if dataclasses.is_dataclass(member) and member is not lsr.LsrConfig:
        fields = [lines[part.lineno - 1].strip() for part in _fields(node)]  # with their comments
        return ["```python\n" + "\n".join(fields) + "\n```\n"]
    return []


def _tree(member: Any) -> ast.FunctionDef | ast.ClassDef:
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(member))).body
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    return node


def _signature(node: ast.FunctionDef, name: str) -> str:
    """Return a signature with its types, one argument a line."""
    arguments = node.args
    if arguments.args[0].arg == "self":
        del arguments.args[0]
    first_default = len(arguments.args) - len(arguments.defaults)
    defaults = [*[None] * first_default, *arguments.defaults]
    lines = [_argument(argument, value) for argument, value in zip(arguments.args, defaults, strict=True)]
    if arguments.kwonlyargs:
        lines.append("*")
    lines += [_argument(*pair) for pair in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    returns = ast.unparse(node.returns) if node.returns else "None"
    return f"{name}(\n" + "".join(f"    {line},\n" for line in lines) + f") -> {returns}"


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(argument) + ("" if default is None else f" = {ast.unparse(default)}")


def _prose(docstring: str) -> str:
    """Return a docstring as Markdown: its `Raises:` becomes a list."""
    lines, raising = [], False
    for line in docstring.splitlines():
        if line == "Raises:":
            raising = True
            lines += ["Raises:", ""]
        elif raising and (found := re.fullmatch(r"    (\w+): (.*)", line)):
            lines.append(f"- `{found[1]}`: {found[2]}")
        elif raising and line.startswith("     "):
            lines.append(f"  {line.strip()}")
        else:
            raising = raising and not line
            lines.append(line)
    return "\n".join(lines) + "\n"


def _table_of_fields(config: Any) -> str:
    """Return the fields of the configuration with type, default and help."""
    node = _tree(config)
    types = {ast.unparse(part.target): ast.unparse(part.annotation) for part in _fields(node)}
    rows = [
        (f"`{field.name}`", f"`{types[field.name]}`", f"`{_default(field)}`", field.metadata["help"])
        for field in dataclasses.fields(config)
        if field.name in types
    ]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(["| field | type | default | |", "|---|---|---|---|", *lines]) + "\n"


def _fields(node: ast.FunctionDef | ast.ClassDef) -> list[ast.AnnAssign]:
    return [part for part in node.body if isinstance(part, ast.AnnAssign)]


def _default(field: "dataclasses.Field[Any]") -> str:
    return repr(field.default_factory() if callable(field.default_factory) else field.default)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
