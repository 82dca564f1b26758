"""`python -m pipeline.predict`: print the predictions of a trained adapter of any method for texts.

They are the label or labels and all probabilities, a number, or what a language model writes; as a table on a terminal,
otherwise as CSV, but a single text that is written as it is. All columns of a file are kept. An adapter for text pairs
takes two arguments, two columns of a file, or lines of standard input with a tab between the two texts.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
import pyarrow as pa

from pipeline import previous
from pipeline.core import artifacts, console
from pipeline.core.batches import batched
from pipeline.core.console import Parser, whole_number
from pipeline.core.errors import UserError, as_user_error, nearest
from pipeline.data import recognition, sources
from pipeline.methods import adapter_task
from pipeline.methods.adapter_task import AdapterTask
from pipeline.tasks import CompletionTask
from pipeline.tasks.cells import TEXT_COLUMNS, is_missing, plain_text, text_in
from pipeline.tasks.task import TENANT, Columns

CSV = ".csv"
JSON_LINES = ".jsonl"
FORMATS = (CSV, JSON_LINES)
STDIN = "-"
SHOWN = 10  # tenants that a message names


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = Parser("python -m pipeline.predict", __doc__)
    add = parser.add_argument
    add("texts", nargs="*", metavar="TEXT", help="without any, or with -, read standard input, one text per line")
    last = artifacts.BANK if artifacts.is_bank(artifacts.BANK) else artifacts.ADAPTER
    add("--adapter", type=Path, metavar="FOLDER", default=last, help="an adapter or a bank of tenants (%(default)s)")
    add("--tenant", metavar="NAME", help="of a bank, who asks; of --file by default the column of training")
    add("--base", metavar="FOLDER_OR_HUB_ID", help="the base model, if not the one that the adapter names")
    add("--file", type=Path, help="read the texts from csv, tsv, jsonl, json, xlsx or parquet, by extension")
    add("--column", nargs="+", metavar="NAME", help="text columns of --file (those of training, or the only one)")
    add("--skip-empty", action="store_true", help="skip rows without text and count them, instead of failing")
    add("--out", type=Path, metavar="FILE", help="write csv or jsonl, by extension, instead of printing")
    add("--force", action="store_true", help="replace --out if it exists")
    add("--json", action="store_true", help="print JSON lines")
    add("--new-tokens", type=whole_number(1, 10**6), default=256, metavar="N", help="written at most (%(default)s)")
    add("--batch-size", type=whole_number(1, 10**6), default=32, metavar="TEXTS", help="at a time (%(default)s)")
    with parser.parsed(arguments, "stopped; --out was not half written", f"{parser.prog}: ") as options:
        _check(options)
        tables = _answered(options)
        if options.out is not None:
            with artifacts.replacing(options.out) as new, new.open("w", encoding="utf-8", newline="") as file:
                count = _write(tables, file, options.out.suffix)
            console.note(f"{options.out}: {count} row{'s' * (count != 1)}")
        elif options.json or not sys.stdout.isatty():
            _write(tables, sys.stdout, JSON_LINES if options.json else CSV)
        else:
            parts = list(tables)  # the widths of columns depend on each cell
            if parts:
                table = pd.concat(parts)
                console.table(str(options.adapter), list(table.columns), table.itertuples(index=False))


def _check(options: argparse.Namespace) -> None:  # whether they fit together and to what is there
    if options.file is not None and options.texts:
        raise UserError("--file: texts are taken from the file or from the arguments, got both")
    if options.file is None and options.column is not None:
        raise UserError("--column: names columns of --file, and there is none")
    out = options.out
    if out is not None and out.suffix not in FORMATS:
        raise UserError(f"--out: {out}: the extension must be one of {', '.join(FORMATS)}")
    if out is not None and out.exists() and (out.is_dir() or not options.force):
        raise UserError(f"--out: {out}: exists; choose another file, or replace it with --force")


def _answered(options: argparse.Namespace) -> Iterator[pd.DataFrame]:
    # Yields rows, some at a time, with answers in columns beside theirs; a single text that is written is printed.
    identity = artifacts.identity(options.adapter)
    previous.print_note_of(options.adapter)
    task, tenants = _tasks(options)
    is_single = len(options.texts) == 1 and options.texts != [STDIN]
    streams = task.task.writes and is_single and options.out is None and not options.json
    opened = None
    count = 0
    truncated = 0
    with console.progress("predict", None, "texts", console.errors) as advance:
        for table, asked in _rows(options, task, tenants):
            # These take seconds: after what can be checked without.
            from pipeline.methods.device import advise_on_threads
            from pipeline.predict.answering import Opened, of_tenants, printed

            if opened is None:
                advise_on_threads(console.note)
                opened = Opened(options.adapter, options.base, task, options.batch_size)
                artifacts.check_not_replaced(options.adapter, identity)
            if task.task.writes:
                texts, cut = opened.written(asked["text"], options.new_tokens, advance, shown=streams)
                answers = CompletionTask.printed(texts, None)
            else:
                outputs, cut = opened.outputs(pa.table(asked), table.index, advance)
                if tenants and options.tenant is None:
                    answers = of_tenants(outputs, list(tenants.values()), asked[TENANT])
                else:
                    answers = printed(outputs, task)
            count += len(table)
            truncated += cut
            if not streams:
                yield _beside(table, answers)
    if truncated:
        console.note(f"{truncated} of {count} texts truncated to {task.max_length} tokens")


def _tasks(options: argparse.Namespace) -> tuple[AdapterTask, dict[str, AdapterTask]]:
    # Returns the task of the adapter or of a tenant, and in a bank the tasks of all tenants.
    tenants = adapter_task.read_bank(options.adapter) if artifacts.is_bank(options.adapter) else {}
    task = tenants.get(options.tenant) or next(iter(tenants.values()), None) or adapter_task.read(options.adapter)
    if not tenants and (options.tenant is not None or task.tenants is not None):
        raise UserError("--tenant: needs --adapter with a bank of tenants, which `lsr bank` makes of their adapter")
    return task, tenants


def _beside(table: pd.DataFrame, answers: Columns) -> pd.DataFrame:
    # Returns a table with answers in further columns, by names that it does not have.
    for name, values in answers.items():
        while name in table:
            name = f"predicted_{name}"
        table[name] = pd.Series(values, table.index, dtype=object)
    return table


def _rows(
    options: argparse.Namespace, task: AdapterTask, tenants: Mapping[str, AdapterTask]
) -> Iterator[tuple[pd.DataFrame, dict[str, list[Any]]]]:
    # Yields rows with a text, some at a time, and what is asked of each: text, text_pair (for pairs), tenant by number.
    tables, columns = _read(options, task)
    where = f"--file: {options.file}: " if options.file is not None else ""
    names = list[str]()
    count = 0
    skipped = 0
    for table in tables:
        table.index = pd.RangeIndex(count + 1, count + len(table) + 1, name="row")
        names = names or list(table.columns)
        whole = _with_columns(table, names, where)
        empty = whole[columns].map(is_missing).any(axis=1)
        full = whole[~empty]
        if empty.any() and not options.skip_empty:
            raise UserError(f"{where}row {empty.idxmax()}: is empty; needed: a text, or --skip-empty")
        for number, *texts in full[columns].itertuples(name=None):
            with as_user_error(ValueError, before=f"{where}row {number}: "):
                for text in texts:
                    text_in(text)
        count += len(whole)
        skipped += len(whole) - len(full)
        asked = {name: full[column].tolist() for name, column in zip(TEXT_COLUMNS, columns, strict=False)}
        if tenants:
            asked[TENANT] = _tenants_of(full, options.tenant, list(tenants), str(task.tenant))
        if not full.empty:
            yield full, asked
    if skipped:
        console.note(f"rows without text skipped: {skipped} of {count}")
    if skipped == count:
        raise UserError("no row has text")


def _with_columns(table: pd.DataFrame, names: Sequence[str], where: str) -> pd.DataFrame:
    # Returns a table with the columns of the first row, null where its rows have none.
    for late in table.columns.difference(names):
        row = table[late].first_valid_index()
        raise UserError(f"{where}row {row}: a new key {late!r}; needed: in row 1, as null where it has none")
    lacking = dict.fromkeys(name for name in names if name not in table)
    return table.assign(**lacking)[names]


def _read(options: argparse.Namespace, task: AdapterTask) -> tuple[Iterator[pd.DataFrame], list[str]]:
    # Returns a table, some rows at a time, and which of its columns hold the texts.
    width = len(task.columns)
    chosen: Sequence[str] = options.column or task.columns
    tables: Iterator[pd.DataFrame]
    if len(chosen) != width:
        raise UserError(f"--column: the adapter reads {width} column{'s' * (width > 1)}, got {' '.join(chosen)}")
    if options.file is None:
        chosen = TEXT_COLUMNS[:width]
        where = "standard input"
        lines = batched(_words(options.texts, width), options.batch_size)
        tables = (pd.DataFrame(some, columns=list(chosen), dtype=object) for some in lines)
    else:
        where = f"--file: {options.file}"
        with sources.explained(where):
            source = recognition.source_of(options.file)
            written = recognition.words_of(source)
        if written:
            console.note(f"{where}: read as {written}")
        tables = sources.values(source, where)
    first = next(tables)
    if not len(first):
        raise UserError(f"{where}: empty; needed: at least one row")
    if len(first.columns) == width == 1 and options.column is None:
        chosen = list(first.columns)
    sources.check_columns(first.columns, chosen, f"{where}, --column")
    return chain([first], tables), list(chosen)


def _words(given: Sequence[str], width: int) -> Iterator[list[str]]:
    # Yields the texts, or pairs of texts, in the arguments or, without any or with "-", in lines of standard input.
    if given not in ([], [STDIN]):
        if len(given) % width:
            raise UserError(f"the adapter reads pairs: needed: an even number of texts, got {len(given)}")
        yield from (list(given[start : start + width]) for start in range(0, len(given), width))
        return
    if sys.stdin.isatty():
        console.note("one text per line; Ctrl-D ends")
    with sources.explained("standard input"):
        for number, line in enumerate(sys.stdin, start=1):
            row = line.removesuffix("\n").split("\t", width - 1)
            if len(row) != width:
                raise UserError(f"standard input: line {number}: needed: two texts with a tab between them")
            yield row


def _tenants_of(table: pd.DataFrame, tenant: str | None, known: Sequence[str], column: str) -> list[int]:
    # Returns the number of the tenant of each row: of --tenant or, without, of that in the column of training.
    if tenant is None and column not in table:
        raise UserError(f"--tenant: whose texts are they? There are {', '.join(known[:SHOWN])}")
    names = [tenant] * len(table) if tenant is not None else table[column].map(plain_text)
    by_name = {name: number for number, name in enumerate(known)}
    numbers = list[int]()
    for name in names:
        if name not in by_name:
            raise UserError(f"--tenant: no tenant {name!r} of {len(known)} in the bank{nearest(name, known)}")
        numbers.append(by_name[name])
    return numbers


def _write(tables: Iterable[pd.DataFrame], out: TextIO, ending: str) -> int:
    """Write tables as they come, as one by its ending, csv or jsonl; return the number of its rows."""
    count = 0
    for table in tables:
        if ending == JSON_LINES:
            table.to_json(out, orient="records", lines=True, force_ascii=False, default_handler=str)
        else:
            cells = chain(table.columns, *(table[name] for name in table))
            table.to_csv(
                out,
                index=False,
                header=count == 0,
                lineterminator="\n",
                quoting=artifacts.quoting_of(cells),
            )
        out.flush()
        count += len(table)
    return count


if __name__ == "__main__":
    main()
