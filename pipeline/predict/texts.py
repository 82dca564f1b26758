"""Read the rows to answer: texts in arguments, lines of standard input, or rows of a file."""

import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from lsr_onnx.errors import shortened, some_of
from pipeline.core import console
from pipeline.core.batches import iter_batches
from pipeline.core.errors import UserError, as_user_error, nearest
from pipeline.data import recognition, sources
from pipeline.methods.adapter_task import AdapterTask
from pipeline.params.sources import fields, is_template
from pipeline.predict.unknown import Group
from pipeline.tasks.cells import TEXT_COLUMNS, fill, is_missing, plain_text, text_in
from pipeline.tasks.task import TENANT

STDIN = "-"
MARK = "\ufeff"  # byte order mark, with which programs of Windows begin a text in UTF-8
SHOWN = 10  # tenants that a message names
Asked = dict[str, list[Any]]  # text, text_pair (for pairs) and tenant by number (of a bank), one for each row


class Texts(NamedTuple):
    """A table with texts, and the columns and names for messages."""

    tables: Iterator[pd.DataFrame]  # some rows at a time
    templates: list[str]  # columns with the texts, or templates of texts
    columns: list[str]  # names of the columns of which texts consist
    before: str  # the number of a row in messages


def read(
    options: Namespace,
    task: AdapterTask,
    tenants: Mapping[str, AdapterTask],
    group: Group | None = None,
) -> Iterator[tuple[pd.DataFrame, Asked]]:
    """Yield tables of the rows that have a text, each with the inputs of the model; `group` is for unknown tenants.

    Raises:
        UserError: if there are no rows, or one cannot be answered.
    """
    texts = _texts(options, task)
    names = list[str]()
    count = 0
    skipped = 0
    for table in texts.tables:
        table.index = pd.RangeIndex(count + 1, count + len(table) + 1, name="row")
        count += len(table)
        names = names or list(table.columns)
        whole = _with_columns(table, names, texts.before)
        empty = whole[texts.columns].map(is_missing).any(axis=1)
        if empty.any() and not options.skip_empty:
            raise UserError(f"{texts.before}row {empty.idxmax()}: is empty; needed: a text, or --skip-empty")
        skipped += empty.sum()
        full = whole[~empty]
        asked = _extract_texts(full, texts)
        if tenants:
            asked[TENANT] = _tenants_of(full, options.tenant, list(tenants), str(task.tenant), group)
        if not full.empty:
            yield full, asked
    if skipped:
        console.note(f"rows without text skipped: {skipped} of {count}")
    if skipped == count:
        raise UserError("no row has text")


def refuse_long_text(row: int, longest: int) -> None:
    """Refuse a text that would be truncated, of which `row` is the number.

    Raises:
        UserError: says so.
    """
    raise UserError(f"--strict: row {row}: the text has more than {longest} tokens; at most that are read")


def check_finite(outputs: np.ndarray, rows: Sequence[int], folder: Path) -> None:
    """Check that the outputs (texts, ...) of an adapter are finite; `rows` are the numbers of the texts.

    Raises:
        FloatingPointError: if an answer is not finite; names the first row.
    """
    of_texts = outputs.reshape(len(outputs), -1)
    are_finite = np.isfinite(of_texts).all(axis=1)
    if not are_finite.all():
        first = int(are_finite.argmin())
        row = rows[first]
        raise FloatingPointError(f"row {row}: the answer is not finite: the weights of {folder} overflow")


def _extract_texts(table: pd.DataFrame, texts: Texts) -> Asked:
    parts = table[texts.columns]
    for number, *row in parts.itertuples(name=None):
        with as_user_error(ValueError, before=f"{texts.before}row {number}: "):
            for text in row:
                text_in(text)
    asked: Asked = {}
    rows = parts.to_dict("records")
    for name, template in zip(TEXT_COLUMNS, texts.templates, strict=False):
        asked[name] = [fill(template, row) for row in rows]
    return asked


def _with_columns(table: pd.DataFrame, names: Sequence[str], before: str) -> pd.DataFrame:
    """Return a table with the columns of the first row, null where rows lack them.

    Raises:
        UserError: if it has a value in a column that the first row lacks.
    """
    for late in table.columns.difference(names):
        row = table[late].first_valid_index()
        if row is not None:
            raise UserError(f"{before}row {row}: a new key {late!r}; add it to row 1 (null if it has no value)")
    lacking = [name for name in names if name not in table]
    nulls = dict.fromkeys(lacking)
    whole = table.assign(**nulls)
    return whole[names]


def _texts(options: Namespace, task: AdapterTask) -> Texts:
    width = len(task.columns)
    templates = list(options.column or task.columns)
    if len(templates) != width:
        given = " ".join(templates)
        plural = "s" if width > 1 else ""
        raise UserError(f"--column: the adapter reads {width} column{plural}, got {given}")
    if options.file is not None:
        return _texts_of_file(options, templates, task.tenant or "")
    columns = list(TEXT_COLUMNS[:width])
    tables = _tables(options, columns)
    first = _first_of(tables, "standard input")
    return Texts(chain([first], tables), columns, columns, "")


def _texts_of_file(options: Namespace, templates: list[str], tenant: str) -> Texts:
    where = f"--file: {options.file}"
    needed = [*_columns_in(templates), tenant]
    tables = _tables_of_file(options, where, needed)
    first = _first_of(tables, where)
    there = list(first.columns)
    filled = [template for template in templates if is_template(template)]
    is_only = len(there) == len(templates) == 1
    is_free = options.column is None and not filled
    if is_only and is_free and there != templates:
        console.note(f"{where}: the texts are in its only column, which is named {shortened(there[0])}")
        templates = there
    columns = _columns_in(templates)
    shown = " ".join(["--column", *filled])
    sources.check_columns(there, columns, f"{where}, {shown}")
    return Texts(chain([first], tables), templates, columns, f"{where}: ")


def _first_of(tables: Iterator[pd.DataFrame], where: str) -> pd.DataFrame:
    """Return the first table.

    Raises:
        UserError: if it has no row.
    """
    first = next(tables)
    if not len(first):
        raise UserError(f"{where}: empty; needed: at least one row")
    return first


def _columns_in(templates: Iterable[str]) -> list[str]:
    """Return the columns, each once, that are texts or fill templates of texts."""
    columns = chain.from_iterable(map(fields, templates))
    return list(dict.fromkeys(columns))


def _tables_of_file(options: Namespace, where: str, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
    """Return the tables of a file; objects become columns, such as review.text, if one of them is to be read."""
    with sources.wrap_reading_errors(where):
        source = recognition.source_of(options.file, options.encoding, options.sheet)
        written = recognition.words_of(source)
    if written:
        console.note(f"{where}: read as {written}")
    is_nested = any("." in name for name in columns)
    return sources.values(source, where, flat=is_nested)


def _tables(options: Namespace, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
    words = _words(options.texts, len(columns))
    for lines in iter_batches(words, options.batch_size):
        yield pd.DataFrame(lines, columns=list(columns), dtype=object)


def _words(given: Sequence[str], width: int) -> Iterator[list[str]]:
    """Yield the texts or pairs in the arguments or, without arguments or with "-", in lines of standard input.

    Raises:
        UserError: if the second text of a pair is missing.
    """
    if given not in ([], [STDIN]):
        if len(given) % width:
            raise UserError(f"the adapter reads pairs: needed: an even number of texts, got {len(given)}")
        yield from iter_batches(given, width)
        return
    if sys.stdin.isatty():
        console.note("one text per line; Ctrl-D ends")
    with sources.wrap_reading_errors("standard input"):
        for number, line in enumerate(sys.stdin, start=1):
            text = line.removesuffix("\n")
            if number == 1:
                text = text.removeprefix(MARK)
            row = text.split("\t", width - 1)
            if len(row) != width:
                raise UserError(f"standard input: line {number}: needed: two texts with a tab between them")
            yield row


def _tenants_of(
    table: pd.DataFrame,
    tenant: str | None,
    known: Sequence[str],
    column: str,
    group: Group | None,
) -> list[int]:
    """Return the number of each row's tenant: from --tenant or, without it, from the column used in training.

    A group answers for tenants that are not known, and for all without such a column.

    Raises:
        UserError: if there is no such tenant, or no such column.
    """
    if tenant is not None:
        names = pd.Series(tenant, table.index)
    elif column in table:
        names = table[column].map(plain_text)
    elif group is not None:
        names = pd.Series(group.name, table.index)
    else:
        raise UserError(f"--tenant: required with a bank; tenants: {some_of(known, SHOWN)}")
    numbers = pd.Index(known).get_indexer(names)
    if group is not None:
        numbers[numbers == -1] = known.index(group.name)
    if -1 in numbers:
        place = numbers.argmin()
        name = names.iloc[place]
        where = "--tenant" if tenant is not None else f"row {names.index[place]}, {column}"
        raise UserError(f"{where}: no tenant {name!r} of {len(known)} in the bank{nearest(name, known)}")
    return list(numbers.tolist())
