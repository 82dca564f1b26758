"""The page of all messages: the texts of errors and warnings as they stand in the code, with values in braces."""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("lsr", "lsr_onnx", "lsr_server", "pipeline", "stages")
PRINTING = (
    "UserError",
    "EmptySplitError",
    "DivergedError",
    "InputError",
    "NoBaseError",
    "ValueError",
    "ArgumentTypeError",
    "warn",
    "note",
)


def messages() -> Iterator[str]:
    """Yield a section for each module that has messages, in the order of its lines."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            texts = list(dict.fromkeys(find_messages(path.read_text(encoding="utf-8"))))
            if texts:
                yield from (f"## {path.relative_to(ROOT)}", "", "```text", *texts, "```", "")


def find_messages(source: str) -> Iterator[str]:
    """Yield the messages of a module, of more than one word each."""
    tree = ast.parse(source)
    constants = find_parts(node for node in tree.body if isinstance(node, ast.Assign))
    for scope in find_scopes(tree):
        nodes = list(ast.walk(scope))
        parts = constants | find_parts(nodes)
        calls = [node for node in nodes if isinstance(node, ast.Call) and node.args]
        for call in sorted(calls, key=lambda call: call.lineno):
            if last_name(call.func) in PRINTING:
                text = describe(call.args[0], parts)
                if len(re.sub(r"{[^{}]*}", "", text).split()) > 1:
                    yield text


def find_scopes(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield the statements of a module, those of a class each alone: what one assigns to a name is a part of it."""
    for node in tree.body:
        yield from node.body if isinstance(node, ast.ClassDef) else (node,)


def find_parts(nodes: Iterable[ast.AST]) -> dict[str, ast.expr]:
    """Return the texts that are assigned to a name, once: parts of messages."""
    texts: dict[str, list[ast.expr]] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            texts.setdefault(node.targets[0].id, []).append(node.value)
    return {name: values[0] for name, values in texts.items() if len(values) == 1 and is_text(values[0])}


def is_text(value: ast.expr) -> bool:
    """Return whether an expression is a text with or without values."""
    return isinstance(value, ast.JoinedStr) or (isinstance(value, ast.Constant) and isinstance(value.value, str))


def last_name(function: ast.expr) -> str:
    """Return the last part of a function's name, such as warn of console.warn."""
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def describe(value: ast.expr, parts: Mapping[str, ast.expr]) -> str:
    """Return a text with its parts filled in, and each other expression in braces."""
    if isinstance(value, ast.Constant):
        return str(value.value)
    if isinstance(value, ast.JoinedStr):
        return join(value.values, parts)
    if isinstance(value, ast.FormattedValue):
        return describe(value.value, parts)
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
        return join((value.left, value.right), parts)
    if isinstance(value, ast.Name) and value.id in parts:
        others = {name: part for name, part in parts.items() if name != value.id}
        return describe(parts[value.id], others)
    return f"{{{ast.unparse(value)}}}"


def join(values: Sequence[ast.expr], parts: Mapping[str, ast.expr]) -> str:
    """Return the texts of these expressions as one."""
    return "".join(describe(value, parts) for value in values)
