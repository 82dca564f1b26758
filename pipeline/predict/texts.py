"""The texts of the command: arguments, lines of standard input, or columns of a file."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from pipeline.core import console
from pipeline.core.errors import UserError
from pipeline.data import sources
from pipeline.methods.adapter_task import AdapterTask
from pipeline.tasks.cells import is_missing, refuse_other_than_text

STDIN = "-"
TEXT_COLUMNS = ("text", "text_pair")  # for input that is not a file
SHOWN = 10  # skipped rows that are listed


class Given(NamedTuple):
    """Rows with all of their columns, and the one or two of these that hold the text, or the pair of texts."""

    table: pd.DataFrame
    chosen: Sequence[str]


def read_words(words: Sequence[str], task: AdapterTask) -> Given:
    """Return the texts in the arguments or, without any or with "-", from standard input, one per line.

    For an adapter of pairs, every two arguments are a pair, and a line holds two texts separated by a tab.

    Raises:
        UserError: if there are no texts, or a pair is incomplete.
    """
    width = len(task.columns)
    if list(words) in ([], [STDIN]):
        rows = [line.split("\t", width - 1) for line in _lines()]
        for number, row in enumerate(rows, start=1):
            if len(row) != width:
                raise UserError(f"standard input: line {number}: needed: two texts with a tab between them")
    else:
        if len(words) % width:
            raise UserError(f"the adapter reads pairs: needed: an even number of texts, got {len(words)}")
        rows = [list(words[start : start + width]) for start in range(0, len(words), width)]
    if not rows:
        raise UserError("standard input: empty; needed: one text per line")
    names = TEXT_COLUMNS[:width]
    return Given(pd.DataFrame(rows, columns=list(names), dtype=object), names)


def read_columns(path: Path, column: Sequence[str] | None, task: AdapterTask) -> Given:
    """Return the rows of a file with the columns that hold texts: those of --column or of training, or the only one.

    Raises:
        UserError: if the file cannot be read or has no rows, or there are no such columns.
    """
    table = sources.whole_file(path, "--file")
    if table.empty:
        raise UserError(f"--file: {path}: empty; needed: at least one row")
    names, width = list(table.columns), len(task.columns)
    chosen = column or (names if len(names) == width == 1 else task.columns)
    if len(chosen) != width:
        raise UserError(f"--column: the adapter reads {width} column{'s' * (width > 1)}, got {' '.join(chosen)}")
    sources.check_columns(names, chosen, f"--file: {path}, --column")
    return Given(table, chosen)


def checked(given: Given, *, skip_empty: bool) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """Return the rows with text, and their texts by the names text and text_pair (for pairs); list the other rows.

    Raises:
        UserError: if a row has no text, unless these are skipped, or a value is not text.
    """
    texts = given.table[list(given.chosen)]
    empty = texts.map(is_missing).any(axis=1)
    numbers = [row + 1 for row in texts.index[empty]]
    if numbers and not skip_empty:
        raise UserError(f"row {numbers[0]}: is empty; needed: a text, or --skip-empty")
    full = texts[~empty].set_axis(pd.RangeIndex(1, len(texts) + 1, name="row")[~empty])
    for _, column in full.items():
        try:
            refuse_other_than_text(column)
        except ValueError as error:
            raise UserError(str(error)) from None
    if numbers:
        shown = ", ".join(map(str, numbers[:SHOWN])) + ", ..." * (len(numbers) > SHOWN)
        console.errors.print(f"rows without text skipped: {len(numbers)} of {len(empty)}: {shown}", soft_wrap=True)
    if empty.all():
        raise UserError("no row has text")
    named = zip(TEXT_COLUMNS, full.items(), strict=False)
    return given.table[~empty].reset_index(drop=True), {name: column.tolist() for name, (_, column) in named}


def _lines() -> list[str]:
    if sys.stdin.isatty():
        console.errors.print("one text per line; Ctrl-D ends", soft_wrap=True)
    with sources.explained("standard input"):
        return [line.removesuffix("\n") for line in sys.stdin]
