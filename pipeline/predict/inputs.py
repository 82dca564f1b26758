"""The texts that a command is given: its arguments, standard input or a file."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import console
from pipeline.data import sources
from pipeline.data.texts import checked_text, is_missing
from pipeline.errors import UserError
from pipeline.methods.task import Task

STDIN = "-"


@dataclass(frozen=True)
class Given:
    """Texts, or pairs of texts."""

    texts: list[str]
    pairs: list[str] | None  # the second text of each


def of_words(words: Sequence[str], task: Task | None) -> Given:
    """Return the texts among the arguments, or, without any or for "-", those of standard input, one a line.

    For an adapter of pairs, arguments are taken two by two, and a line holds two texts with a tab between them.

    Raises:
        UserError: if there is no text, or one is empty or lacks its second; says which.
    """
    width = 1 if task is None else len(task.columns)
    if list(words) in ([], [STDIN]):
        source, rows = "standard input: line", [line.split("\t", width - 1) for line in _lines()]
        for number, row in enumerate(rows, start=1):
            if len(row) != width:
                raise UserError(f"{source} {number}: needed: two texts with a tab between them")
    else:
        if len(words) % width:
            raise UserError(f"the adapter reads pairs: needed: an even number of texts, got {len(words)}")
        source, rows = "text", [list(words[start : start + width]) for start in range(0, len(words), width)]
    if not rows:
        raise UserError("standard input: empty; needed: one text a line")
    return _checked([[row[position] for row in rows] for position in range(width)], source)


def of_file(path: Path, columns: Sequence[str] | None, task: Task | None) -> Given:
    """Return the texts of one column of a file, or of two for an adapter of pairs.

    Without `columns` they are those of the task, or the only one.

    Raises:
        UserError: if the file cannot be read, has no such column, or a row has no text.
    """
    table = sources.read_file(path, "--file")
    where = f"--file: {path}"
    chosen = _usual(table, task, where) if columns is None else columns
    width = min(2, len(chosen)) if task is None else len(task.columns)
    if len(chosen) != width:
        reads = (
            "1 name, as the adapter reads one text" if width == 1 else "2 names, as the adapter reads pairs of texts"
        )
        raise UserError(f"--column needs {reads}, got {' '.join(chosen)}")
    found = list(sources.select(table, chosen, where).values())
    if not found[0]:
        raise UserError(f"{where}: empty; needed: at least one row")
    return _checked(found, f"{where}: row")


def _usual(table: sources.Columns, task: Task | None, where: str) -> Sequence[str]:
    if task is not None and set(task.columns) <= table.keys():
        return task.columns
    if len(table) == 1:
        return list(table)
    trained_on = "" if task is None else f"no column {' and '.join(task.columns)}, as in training; "
    raise UserError(f"{where}: {trained_on}choose with --column; columns: {', '.join(table) or 'none'}")


def _lines() -> list[str]:
    if sys.stdin.isatty():
        console.errors.print("one text a line; Ctrl-D ends", soft_wrap=True)
    try:
        content = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input: not UTF-8: {error.reason} at byte {error.start}") from None
    return [line.removesuffix("\r") for line in content.removesuffix("\n").split("\n")] if content else []


def _checked(columns: Sequence[Sequence[object]], source: str) -> Given:
    for values in columns:
        for number, value in enumerate(values, start=1):
            try:
                if is_missing(value):
                    raise ValueError("is empty; needed: a text")
                checked_text(value)
            except ValueError as error:
                raise UserError(f"{source} {number}: {error}") from None
    texts, *pairs = ([str(value) for value in values] for values in columns)
    return Given(texts, pairs[0] if pairs else None)
