"""The texts of the command: arguments, lines of standard input, or columns of a file."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from pipeline.core import console
from pipeline.core.errors import UserError, as_user_error, nearest
from pipeline.data import sources
from pipeline.data.sources import ROWS
from pipeline.methods.adapter_task import AdapterTask
from pipeline.tasks.cells import is_missing, plain_text, refuse, refuse_other_than_text
from pipeline.tasks.encoding import batched
from pipeline.tasks.task import TENANT

STDIN = "-"
TEXT_COLUMNS = ("text", "text_pair")  # for input that is not a file
SHOWN = 10  # skipped rows that are listed


class Given(NamedTuple):
    """A table, some rows at a time, as often as they are asked for."""

    tables: Callable[[], Iterable[pd.DataFrame]]
    columns: list[str]
    texts: list[str]  # of the columns those that hold texts


class Rows(NamedTuple):
    """Some rows of a table."""

    table: pd.DataFrame  # without those that have no text
    asked: dict[str, Sequence[Any]]  # the columns text, text_pair (for pairs), and tenant by number (of a bank)
    empty: list[int]  # numbers of rows without text


def read_words(words: Sequence[str], task: AdapterTask) -> Given:
    """Return the texts in the arguments or, without any or with "-", from standard input.

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
    names = list(TEXT_COLUMNS[:width])
    return Given(
        lambda: (pd.DataFrame(some, columns=names, dtype=object) for some in batched(rows, ROWS)), names, names
    )


def read_columns(path: Path, column: Sequence[str] | None, task: AdapterTask) -> Given:
    """Return the rows of a file. Texts are in the columns that --column or the training names, or in the only one.

    Raises:
        UserError: if the file cannot be read or has no rows, or there are no such columns.
    """
    there, rows = dict[str, None](), 0
    for table in sources.values(path, "--file"):
        there |= dict.fromkeys(table.columns)
        rows += len(table)
    if not rows:
        raise UserError(f"--file: {path}: empty; needed: at least one row")
    names, width = list(there), len(task.columns)
    chosen = list(column or (names if len(names) == width == 1 else task.columns))
    if len(chosen) != width:
        raise UserError(f"--column: the adapter reads {width} column{'s' * (width > 1)}, got {' '.join(chosen)}")
    sources.check_columns(names, chosen, f"--file: {path}, --column")
    return Given(lambda: sources.values(path, "--file"), names, chosen)


def rows_of(given: Given, whose: Callable[[pd.DataFrame], dict[str, list[int]]], *, skip_empty: bool) -> Iterator[Rows]:
    """Yield all rows, and the tenants `whose` they are.

    Raises:
        UserError: if a row has no text, unless these are skipped, or a value is not text; or as `whose`.
    """
    before = 0
    for part in given.tables():
        table = part.assign(**{name: None for name in given.columns if name not in part})[given.columns]
        table.index = pd.RangeIndex(before + 1, before + len(part) + 1, name="row")
        before += len(part)
        empty = table[given.texts].map(is_missing).any(axis=1)
        full = table[~empty]
        with as_user_error(ValueError):
            if not skip_empty:
                refuse(empty, empty, "is empty; needed: a text, or --skip-empty")
            for name in given.texts:
                refuse_other_than_text(full[name])
        asked = {ours: full[name].tolist() for ours, name in zip(TEXT_COLUMNS, given.texts, strict=False)}
        yield Rows(full, asked | whose(full), table.index[empty].tolist())


def check(rows: Iterable[Rows]) -> tuple[int, set[int]]:
    """Return the number of rows with text, and the tenants whose they are; list the other rows.

    Raises:
        UserError: if no row has text.
    """
    count, used, skipped, first = 0, set[int](), 0, list[int]()
    for its in rows:
        count, skipped, first = count + len(its.table), skipped + len(its.empty), (first + its.empty)[:SHOWN]
        used |= set(its.asked.get(TENANT, ()))
    if skipped:
        shown = ", ".join(map(str, first)) + ", ..." * (skipped > SHOWN)
        console.note(f"rows without text skipped: {skipped} of {count + skipped}: {shown}")
    if not count:
        raise UserError("no row has text")
    return count, used


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
