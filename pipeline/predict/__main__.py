"""`python -m pipeline.predict`: print the predictions of a trained adapter of any method for texts.

They are the label or labels and all probabilities, a number, or what a language model writes; as a table on a terminal,
otherwise as CSV, but a single text that is written as it is. All columns of a file are kept. An adapter for text pairs
takes two arguments, two columns of a file, or lines of standard input with a tab between the two texts.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TextIO

import pandas as pd
import pyarrow as pa

from pipeline.core import artifacts, console
from pipeline.core.command_line import Parser, whole_number
from pipeline.core.errors import UserError, as_user_error, exit_on_error
from pipeline.methods import adapter_task
from pipeline.methods.adapter_task import AdapterTask
from pipeline.predict import texts
from pipeline.tasks import CompletionTask
from pipeline.tasks.encoding import batched
from pipeline.tasks.task import TENANT

PROGRAM = "python -m pipeline.predict"
GROUP = 50  # tables that are a row group of parquet
FORMATS = CSV, JSON_LINES, PARQUET = (".csv", ".jsonl", ".parquet")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = Parser(PROGRAM, __doc__)
    add = parser.add_argument
    add("texts", nargs="*", metavar="TEXT", help="without any, or with -, read standard input, one text per line")
    add("--adapter", type=Path, metavar="FOLDER", help="an adapter or a bank of tenants (as trained last)")
    add("--tenant", metavar="NAME", help="of a bank, who asks; of --file by default the column of training")
    add("--base", metavar="FOLDER_OR_HUB_ID", help="the base model, if not the one that the adapter names")
    add("--file", type=Path, help="read the texts from csv, tsv, jsonl or parquet, by extension")
    add("--column", nargs="+", metavar="NAME", help="text columns of --file (those of training, or the only one)")
    add("--skip-empty", action="store_true", help="skip rows without text and list them, instead of failing")
    add("--out", type=Path, metavar="FILE", help="write csv, jsonl or parquet, by extension, instead of printing")
    add("--force", action="store_true", help="replace --out if it exists")
    add("--json", action="store_true", help="print JSON lines")
    add("--new-tokens", type=whole_number(1, 10**6), default=256, metavar="N", help="written at most (%(default)s)")
    add("--batch-size", type=whole_number(1, 10**6), default=32, metavar="TEXTS", help="at a time (%(default)s)")
    options = parser.parse_args(arguments)
    if options.adapter is None:
        options.adapter = artifacts.BANK if artifacts.is_bank(artifacts.BANK) else artifacts.ADAPTER
    with exit_on_error("stopped; --out was not half written", PROGRAM, before=f"{PROGRAM}: "):
        check(options)
        predict(options)


def check(options: argparse.Namespace) -> None:
    """Check that the options are compatible and the output can be written, before reading anything.

    Raises:
        UserError: if they are not, or it cannot.
    """
    if options.file is not None and options.texts:
        raise UserError("--file: texts are taken from the file or from the arguments, got both")
    if options.file is None and options.column is not None:
        raise UserError("--column: names columns of --file, and there is none")
    out = options.out
    if out is not None and out.suffix not in FORMATS:
        raise UserError(f"--out: {out}: the extension must be one of {', '.join(FORMATS)}")
    if out is not None and out.exists() and (out.is_dir() or not options.force):
        raise UserError(f"--out: {out}: exists; choose another file, or replace it with --force")


def predict(options: argparse.Namespace) -> None:
    """Check all texts; then run the model, and print or write the predictions beside the columns of their rows."""
    tenants = adapter_task.read_bank(options.adapter) if artifacts.is_bank(options.adapter) else {}
    tasks = list(tenants.values()) or [adapter_task.read(options.adapter)]
    if options.file is None:
        given = texts.read_words(options.texts, tasks[0])
    else:
        given = texts.read_columns(options.file, options.column, tasks[0])
    whose = partial(texts.tenants_of, tenant=options.tenant, known=tenants, task=tasks[0])
    rows = partial(texts.rows_of, given, whose, skip_empty=options.skip_empty)
    count, used = texts.check(rows())
    tables = answered(rows(), options, tasks, count, used)
    if options.out is not None:
        with artifacts.replacing(options.out) as new:
            if options.out.suffix == PARQUET:
                write_parquet(tables, new, schema(its.table for its in rows()))
            else:
                with new.open("w", encoding="utf-8", newline="") as file:
                    write(tables, file, options.out.suffix)
        console.note(f"{options.out}: {count} row{'s' * (count != 1)}")
    elif options.json or not sys.stdout.isatty():
        write(tables, sys.stdout, JSON_LINES if options.json else CSV)
    elif all_of_them := list(tables):  # the widths of columns depend on each cell
        table = pd.concat(all_of_them)
        cells = table.map(lambda cell: "" if cell is None else cell if isinstance(cell, int | float) else str(cell))
        console.table(str(options.adapter), list(table.columns), cells.itertuples(index=False))


def answered(
    rows: Iterable[texts.Rows], options: argparse.Namespace, tasks: Sequence[AdapterTask], count: int, used: Set[int]
) -> Iterator[pd.DataFrame]:
    """Yield tables with the answers beside the columns of rows, but of a single text that is written as it is.

    `tasks` are those of the adapter or of all tenants; there are `count` rows, of the tenants `used`.
    """
    # They take seconds, as does the model: after what can be checked without.
    from pipeline.predict.answering import Opened, printed

    task, cut = tasks[0], 0
    opened = Opened(options.adapter, options.base, task, options.batch_size)
    is_text = task.kind == CompletionTask.kind
    streams = is_text and count == 1 and options.file is None and options.out is None and not options.json
    with console.progress("predict", count, "texts", console.errors) as advance:
        for table, asked, _ in rows:
            if table.empty:
                continue
            if is_text:
                said, lost = opened.written(asked["text"], options.new_tokens, advance, shown=streams)
                columns = CompletionTask.printed(said, None)
            else:
                outputs, lost = opened.outputs(pa.table(asked), advance)
                columns = printed(outputs, tasks, asked.get(TENANT, [0] * len(table)), is_mixed=len(used) > 1)
            cut += lost
            for name, values in columns.items():
                while name in table:
                    name = f"predicted_{name}"
                table[name] = pd.Series(values, table.index, dtype=object)
            if not streams:
                yield table
    if cut:
        console.note(f"{cut} of {count} texts truncated to {task.max_length} tokens")


def write(tables: Iterable[pd.DataFrame], out: TextIO, ending: str) -> None:
    """Write tables as they come, as one in the format of an ending, csv or jsonl."""
    for number, table in enumerate(tables):
        if ending == JSON_LINES:
            table.to_json(out, orient="records", lines=True, force_ascii=False, default_handler=str)
        else:
            table.to_csv(out, index=False, header=number == 0, lineterminator="\n")
        out.flush()


def write_parquet(tables: Iterable[pd.DataFrame], out: Path, known: pa.Schema) -> None:
    """Write tables as they come, as one; `known` is the schema of their columns but the answers."""
    from pyarrow.parquet import ParquetWriter

    whole, writer = known, None
    with ExitStack() as stack:
        for some in batched(tables, GROUP):
            table = pd.concat(some)
            if writer is None:
                whole = schema([table], known)
                writer = stack.enter_context(ParquetWriter(out, whole))
            writer.write_table(pa.Table.from_pandas(table, whole, preserve_index=False))


def schema(tables: Iterable[pd.DataFrame], *known: pa.Schema) -> pa.Schema:
    """Return the names and types of the columns of all tables, after those that are known.

    Raises:
        UserError: if a column holds values of several types.
    """
    with as_user_error(ValueError, TypeError, before="--out: parquet does not take this table: "):
        found = [pa.Schema.from_pandas(its.infer_objects(), preserve_index=False).remove_metadata() for its in tables]
        return pa.unify_schemas([*known, *found], promote_options="permissive")


if __name__ == "__main__":
    main()
