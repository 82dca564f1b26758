"""The input texts of the command: arguments, standard input, or a file that is read a batch at a time."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.core import console
from pipeline.core.errors import UserError
from pipeline.data import sources
from pipeline.data.texts import checked_text, is_missing
from pipeline.methods.adapter_task import Task

STDIN = "-"
TEXT_COLUMNS = ("text", "text_pair")  # for input that is not a file
SHOWN = 10  # skipped rows that are listed


@dataclass(frozen=True)
class Given:
    """Texts, or pairs of texts, and all columns of their rows, including the texts."""

    texts: list[str]
    pairs: list[str] | None  # the second text of each
    columns: sources.Columns


@dataclass(frozen=True)
class Source:
    """A checked source of texts."""

    columns: list[str]  # that each batch has
    rows: int  # of all batches
    reads_pairs: bool
    batches: Callable[[], Iterator[Given]]


def of_words(words: Sequence[str], task: Task | None, *, skip_empty: bool = False) -> Source:
    """Return the texts in the arguments or, without any or with "-", from standard input, one per line.

    For an adapter of pairs, every two arguments are a pair, and a line holds two texts separated by a tab.

    Raises:
        UserError: if there are no texts, or a text is empty (unless skipped) or lacks its second; says which.
    """
    width = 1 if task is None else len(task.columns)
    if list(words) in ([], [STDIN]):
        source, rows = "standard input: line", [line.split("\t", width - 1) for line in _lines()]
        for number, row in enumerate(rows, start=1):
            if len(row) != width and not (skip_empty and is_missing(row[0])):
                raise UserError(f"{source} {number}: needed: two texts with a tab between them")
        rows = [row + [""] * (width - len(row)) for row in rows]
    else:
        if len(words) % width:
            raise UserError(f"the adapter reads pairs: needed: an even number of texts, got {len(words)}")
        source, rows = "text", [list(words[start : start + width]) for start in range(0, len(words), width)]
    if not rows:
        raise UserError("standard input: empty; needed: one text per line")
    names = list(TEXT_COLUMNS[:width])
    table: sources.Columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    return _checked(lambda: iter([table]), names, names, source, skip_empty)


def of_file(path: Path, columns: Sequence[str] | None, task: Task | None, *, skip_empty: bool = False) -> Source:
    """Return the texts of one column of a file, or of two for an adapter of pairs, and all other columns.

    `columns` defaults to the task's, or to the only one. The file is read three times, never as a whole: its columns
    and then all of its texts are checked before the first text is returned.

    Raises:
        UserError: if the file cannot be read, lacks a column, or a row has no text (unless skipped).
    """
    where = f"--file: {path}"
    # All batches, because in JSON the last line may add a column. Changes to the file while it is read go unnoticed.
    names = list(dict.fromkeys(name for batch in sources.batches_of(path, "--file") for name in batch))
    chosen = _usual(names, task, where) if columns is None else columns
    width = min(2, len(chosen)) if task is None else len(task.columns)
    if len(chosen) != width:
        reads = (
            "1 name, as the adapter reads one text" if width == 1 else "2 names, as the adapter reads pairs of texts"
        )
        raise UserError(f"--column needs {reads}, got {' '.join(chosen)}")
    sources.check_columns(names, chosen, where)
    found = _checked(lambda: sources.batches_of(path, "--file"), names, chosen, f"{where}: row", skip_empty)
    if not found.rows:
        raise UserError(f"{where}: empty; needed: at least one row")
    return found


def _usual(names: Sequence[str], task: Task | None, where: str) -> Sequence[str]:
    if task is not None and set(task.columns) <= set(names):
        return task.columns
    if len(names) == 1:
        return names
    trained_on = "" if task is None else f"no column {' and '.join(task.columns)}, as in training; "
    raise UserError(f"{where}: {trained_on}choose with --column; columns: {', '.join(names) or 'none'}")


def _lines() -> list[str]:
    if sys.stdin.isatty():
        console.errors.print("one text per line; Ctrl-D ends", soft_wrap=True)
    try:
        content = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"standard input: not UTF-8: {error.reason} at byte {error.start}") from None
    return [line.removesuffix("\r") for line in content.removesuffix("\n").split("\n")] if content else []


def _checked(
    read: Callable[[], Iterator[sources.Columns]],
    names: Sequence[str],
    chosen: Sequence[str],
    source: str,
    skip_empty: bool,
) -> Source:
    """Return a source after a check of all its rows; list the skipped ones.

    Raises:
        UserError: for the first row without a text (unless skipped), or with a value that is not text.
    """
    empty: list[int] = []
    rows = number = 0
    for table in read():
        kept, number = list(_kept(table, chosen, source, number, skip_empty, empty)), number + _height(table)
        rows += len(kept)
    if empty:
        shown = ", ".join(map(str, empty[:SHOWN])) + ", ..." * (len(empty) > SHOWN)
        console.errors.print(f"{source}s without text skipped: {len(empty)} of {number}: {shown}", soft_wrap=True)
        if not rows:
            raise UserError(f"{source}s: none has text")

    def batches() -> Iterator[Given]:
        number = 0
        for table in read():
            kept, number = list(_kept(table, chosen, source, number, skip_empty, [])), number + _height(table)
            columns: sources.Columns = {
                name: [table[name][at] for at in kept] if name in table else [None] * len(kept) for name in names
            }
            texts, *pairs = ([str(value) for value in columns[name]] for name in chosen)
            if kept:
                yield Given(texts, pairs[0] if pairs else None, columns)

    return Source(list(names), rows, len(chosen) > 1, batches)


def _height(table: sources.Columns) -> int:
    return max(map(len, table.values()), default=0)


def _kept(
    table: sources.Columns, chosen: Sequence[str], source: str, before: int, skip_empty: bool, empty: list[int]
) -> Iterator[int]:
    """Yield the positions of the rows in a batch that have text; append the row numbers of the others to `empty`.

    Raises:
        UserError: if a row has no text and is not to be skipped, or has a value that is not text.
    """
    texts = [table.get(name, [None] * _height(table)) for name in chosen]
    for at in range(_height(table)):
        values = [column[at] for column in texts]
        number = before + at + 1
        if not any(map(is_missing, values)):
            _check_texts(values, f"{source} {number}")
            yield at
        elif skip_empty:
            empty.append(number)
        else:
            raise UserError(f"{source} {number}: is empty; needed: a text, or --skip-empty")


def _check_texts(values: Sequence[object], where: str) -> None:
    try:
        for value in values:
            checked_text(value)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
