"""The texts of the command: arguments, lines of standard input, or columns of a file."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from pipeline.core import console
from pipeline.core.errors import UserError, as_user_error, nearest
from pipeline.data import sources
from pipeline.methods.adapter_task import AdapterTask
from pipeline.tasks.cells import is_missing, plain_text, refuse_other_than_text
from pipeline.tasks.task import TENANT

STDIN = "-"
TEXT_COLUMNS = ("text", "text_pair")  # for input that is not a file
SHOWN = 10  # skipped rows that are listed


def read_words(words: Sequence[str], task: AdapterTask) -> tuple[pd.DataFrame, Sequence[str]]:
    """Return the texts in the arguments or, without any or with "-", from standard input; and the names of the columns.

    For an adapter of pairs, every two arguments are a pair, and a line holds two texts separated by a tab.

    Raises:
        UserError: if there are no texts, or a pair is incomplete.
    """
    width = len(task.columns)
    if list(words) in ([], [STDIN]):
        if sys.stdin.isatty():
            console.note("one text per line; Ctrl-D ends")
        with sources.explained("standard input"):
            rows = [line.removesuffix("\n").split("\t", width - 1) for line in sys.stdin]
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
    return pd.DataFrame(rows, columns=list(names), dtype=object), names


def read_columns(path: Path, column: Sequence[str] | None, task: AdapterTask) -> tuple[pd.DataFrame, Sequence[str]]:
    """Return the rows of a file, and which columns hold texts: those of --column or of training, or the only one.

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
    return table, chosen


def tenants_of(
    table: pd.DataFrame, tenant: str | None, known: Mapping[str, AdapterTask], task: AdapterTask
) -> dict[str, list[int]]:
    """Return the column of the tenant of each row, by number, of a bank; nothing of an adapter.

    It is that of --tenant or, without, of the column that named tenants in training.

    Raises:
        UserError: if it is not said, or there is no such tenant.
    """
    if not known:
        if tenant is not None or task.tenants is not None:
            raise UserError("--tenant: needs --adapter with a bank of tenants, which `lsr bank` makes of their adapter")
        return {}
    if tenant is None and task.tenant not in table:
        raise UserError(f"--tenant: whose texts are they? There are {', '.join(list(known)[:SHOWN])}")
    names = [tenant] * len(table) if tenant is not None else table[task.tenant].map(plain_text)
    numbers = {name: number for number, name in enumerate(known)}
    for name in names:
        if name not in numbers:
            raise UserError(f"--tenant: no tenant {name!r} of {len(known)} in the bank{nearest(name, known)}")
    return {TENANT: [numbers[name] for name in names]}


def checked(
    table: pd.DataFrame, names: Sequence[str], *, skip_empty: bool
) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """Return the rows with text, and their texts by the names text and text_pair (for pairs); list the other rows.

    Raises:
        UserError: if a row has no text, unless these are skipped, or a value is not text.
    """
    texts = table[list(names)].set_axis(pd.RangeIndex(1, len(table) + 1, name="row"))
    empty = texts.map(is_missing).any(axis=1)
    numbers = [str(row) for row in texts.index[empty]]
    if numbers and not skip_empty:
        raise UserError(f"row {numbers[0]}: is empty; needed: a text, or --skip-empty")
    full = texts[~empty]
    for _, column in full.items():
        with as_user_error(ValueError):
            refuse_other_than_text(column)
    if numbers:
        shown = ", ".join(numbers[:SHOWN]) + ", ..." * (len(numbers) > SHOWN)
        console.note(f"rows without text skipped: {len(numbers)} of {len(empty)}: {shown}")
    if full.empty:
        raise UserError("no row has text")
    named = zip(TEXT_COLUMNS, full.items(), strict=False)
    return table[~empty.to_numpy()].reset_index(drop=True), {name: column.tolist() for name, (_, column) in named}
