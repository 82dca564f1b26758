"""`python -m benchmarks.size`: size and density of the code in syntax nodes, which packing cannot hide.

A node is one of Python's `ast`; a code line is one that holds code outside docstrings and comments.
"""

import ast
import io
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pipeline.core import console
from pipeline.core.console import Parser, whole_number
from pipeline.core.errors import UserError

PACKAGES = ("lsr", "lsr_onnx", "lsr_server", "pipeline", "stages", "benchmarks")
LONG_BODY = 30  # code lines
LONG_FILE = 200  # lines
# Names that describe nothing.
PRONOUNS = {
    "at",
    "found",
    "its",
    "one",
    "said",
    "says",
    "whose",
}
LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """A file of Python code."""

    path: Path
    text: str

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """All nodes of its syntax tree."""
        tree = ast.parse(self.text)
        return list(ast.walk(tree))

    @cached_property
    def code_lines(self) -> set[int]:
        """The numbers of the lines that hold code, from 1."""
        lines = set[int]()
        read = io.StringIO(self.text).readline
        for token in tokenize.generate_tokens(read):
            if token.type in LAYOUT:
                continue
            first, _ = token.start
            last, _ = token.end
            lines.update(range(first, last + 1))
        for node in self.nodes:
            lines -= docstring_lines(node)
        return lines

    @property
    def package(self) -> str:
        """The folder, as `lsr/tuner`."""
        return self.path.parent.as_posix()

    def bodies(self) -> Iterator[tuple[str, int]]:
        """Yield the name of each function, with the number of its code lines below the signature."""
        for node in self.nodes:
            if isinstance(node, Function):
                first = node.body[0].lineno
                last = last_line(node)
                lines = self.code_lines.intersection(range(first, last + 1))
                yield f"{self.path.as_posix()}:{node.lineno} {node.name}", len(lines)


@dataclass(frozen=True)
class Size:
    """The size of some files."""

    nodes: int
    lines: int  # lines that hold code

    @property
    def density(self) -> float:
        """Nodes per code line; 0 if there is no code."""
        return self.nodes / max(1, self.lines)

    def row(self, name: str) -> list[object]:
        """Return the cells of a row of a table."""
        return [
            name,
            self.nodes,
            self.lines,
            round(self.density, 1),
        ]


def last_line(node: ast.stmt) -> int:
    """Return the number of the last line of a statement, which the parser always sets."""
    assert node.end_lineno is not None
    return node.end_lineno


def docstring_lines(node: ast.AST) -> set[int]:
    """Return the numbers of the lines of a node's docstring; empty if it has none."""
    if not isinstance(node, ast.Module | ast.ClassDef | Function):
        return set()
    if ast.get_docstring(node) is None:
        return set()
    docstring = node.body[0]
    return set(range(docstring.lineno, last_line(docstring) + 1))


def sources(folder: Path, packages: Iterable[str] = PACKAGES) -> list[Source]:
    """Return all files of these packages below a folder, by path.

    Raises:
        UserError: if there are none.
    """
    files = list[Source]()
    for package in packages:
        for path in sorted((folder / package).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            files.append(Source(path.relative_to(folder), text))
    if not files:
        raise UserError(f"{folder}: no Python files in {', '.join(packages)}; give the folder of a checkout")
    return files


def measure(files: Iterable[Source]) -> Size:
    """Return the size of files."""
    nodes = 0
    lines = 0
    for file in files:
        nodes += len(file.nodes)
        lines += len(file.code_lines)
    return Size(nodes, lines)


def is_tuple_assignment(node: ast.AST) -> bool:
    """Return whether a node binds several names to as many explicit values: `a, b = x, y`."""
    if not isinstance(node, ast.Assign):
        return False
    if not isinstance(node.value, ast.Tuple):
        return False
    return isinstance(node.targets[-1], ast.Tuple)


def is_pronoun(node: ast.AST) -> bool:
    """Return whether a node binds a variable or a parameter whose name is a pronoun."""
    if isinstance(node, ast.arg):
        return node.arg in PRONOUNS
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return node.id in PRONOUNS
    return False


def is_assignment_expression(node: ast.AST) -> bool:
    """Return whether a node binds a name within an expression: `(a := x)`."""
    return isinstance(node, ast.NamedExpr)


# What makes code hard to read, of a node, of a body and of a file.
HABITS = {
    "tuple assignments": is_tuple_assignment,
    "assignment expressions": is_assignment_expression,
    "variables named by a pronoun": is_pronoun,
}
LONG_BODIES = f"bodies above {LONG_BODY} code lines"
LONG_FILES = f"files above {LONG_FILE} lines"


def places(files: Iterable[Source]) -> Iterator[tuple[str, str]]:
    """Yield each habit with the place where code has it, as `lsr/tuner/files.py:12`."""
    for file in files:
        path = file.path.as_posix()
        for node in file.nodes:
            for habit, has in HABITS.items():
                if has(node):
                    yield habit, f"{path}:{getattr(node, 'lineno', 1)}"
        for name, lines in file.bodies():
            if lines > LONG_BODY:
                yield LONG_BODIES, name
        if file.text.count("\n") > LONG_FILE:
            yield LONG_FILES, path


def habits(files: Iterable[Source]) -> Counter[str]:
    """Count how often code is packed, or uses a name without meaning."""
    count = Counter(dict.fromkeys([*HABITS, LONG_BODIES, LONG_FILES], 0))
    count.update(habit for habit, _ in places(files))
    return count


def print_packages(files: Sequence[Source]) -> None:
    """Print the size of each package and of all."""
    rows = []
    for package in sorted({file.package for file in files}):
        own = [file for file in files if file.package == package]
        rows.append(measure(own).row(package))
    rows.append(measure(files).row("all"))
    console.table("size", ["package", "nodes", "code lines", "nodes per line"], rows)


def print_densest(files: Sequence[Source], count: int) -> None:
    """Print the densest files."""
    sizes = [(measure([file]), file.path.as_posix()) for file in files]
    sizes.sort(key=lambda pair: -pair[0].density)
    rows = [size.row(path) for size, path in sizes[:count]]
    console.table("densest files", ["file", "nodes", "code lines", "nodes per line"], rows)


def print_longest(files: Sequence[Source], count: int) -> None:
    """Print the functions with the longest bodies."""
    bodies = list[tuple[str, int]]()
    for file in files:
        bodies.extend(file.bodies())
    bodies.sort(key=lambda body: -body[1])
    console.table("longest bodies", ["function", "code lines"], bodies[:count])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the size by package, the densest files, the longest bodies, and habits that make code hard to read."""
    with _parser().parse(arguments) as options:
        files = sources(options.folder)
        print_packages(files)
        print_densest(files, options.longest)
        print_longest(files, options.longest)
        counts = habits(files)
        console.table("habits", ["what", "count"], list(counts.items()))
        if options.places:
            console.table("places", ["what", "where"], sorted(places(files)))


def _parser() -> Parser:
    parser = Parser(
        "python -m benchmarks.size",
        "Count the code by package in syntax nodes and code lines, and list the densest files and the longest "
        "functions. A code line holds code outside docstrings and comments.",
    )
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        nargs="?",
        type=Path,
        default=Path(),
        help="checkout to measure (default: this one)",
    )
    parser.add_argument(
        "--longest",
        type=whole_number(1, 1000),
        default=10,
        metavar="N",
        help="number of files and functions to list (default: %(default)s)",
    )
    parser.add_argument(
        "--places",
        action="store_true",
        help="list each place counted in the table of habits",
    )
    return parser


if __name__ == "__main__":
    main()
