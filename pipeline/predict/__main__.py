"""`python -m pipeline.predict`: print the predictions of a trained adapter of any method for texts.

They are the label or labels and all probabilities, a number, or what a language model writes; as a table on a terminal,
otherwise as CSV, but a single text that is written as it is. All columns of a file are kept. An adapter for text pairs
takes two arguments, two columns of a file, or lines of standard input with a tab between the two texts.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import pandas as pd

from pipeline.core import artifacts, console
from pipeline.core.command_line import Parser, whole_number
from pipeline.core.errors import UserError, as_user_error, exit_on_error
from pipeline.methods import adapter_task
from pipeline.predict import texts
from pipeline.tasks import CompletionTask

PROGRAM = "python -m pipeline.predict"
FORMATS = CSV, JSON_LINES, _ = (".csv", ".jsonl", ".parquet")


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
    with exit_on_error("stopped; nothing was half written", PROGRAM, before=f"{PROGRAM}: "):
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
    """Read texts, run the model, and print or write the predictions beside the columns of their rows."""
    tenants = adapter_task.read_bank(options.adapter) if artifacts.is_bank(options.adapter) else {}
    task = next(iter(tenants.values())) if tenants else adapter_task.read(options.adapter)
    if options.file is None:
        given, names = texts.read_words(options.texts, task)
    else:
        given, names = texts.read_columns(options.file, options.column, task)
    table, asked = texts.checked(given, names, skip_empty=options.skip_empty)
    whose = texts.tenants_of(table, options.tenant, tenants, task)
    from datasets import Dataset  # takes seconds, as does all that answers: after what can be checked without

    from pipeline.predict.answering import answer, printed, written

    where, size = (options.adapter, options.base, task), options.batch_size
    if task.kind == CompletionTask.kind:
        streams = len(table) == 1 and options.file is None and options.out is None and not options.json
        said, truncated = written(*where, asked["text"], size, options.new_tokens, shown=streams)
        columns = CompletionTask.printed(said, None)
    else:
        outputs, truncated = answer(*where, Dataset.from_dict(asked | whose), size, "predict")
        columns, streams = printed(outputs, [*tenants.values()] or [task], whose), False
    if truncated:
        console.note(f"{truncated} of {len(table)} texts truncated to {task.max_length} tokens")
    if streams:
        return
    for name, values in columns.items():
        while name in table:
            name = f"predicted_{name}"
        table[name] = pd.Series(values, table.index, dtype=object)
    if options.out is not None:
        with artifacts.replacing(options.out) as new:
            write(table, new, options.out.suffix)
        console.note(f"{options.out}: {len(table)} row{'s' * (len(table) != 1)}")
    elif options.json or not sys.stdout.isatty():
        write(table, sys.stdout, JSON_LINES if options.json else CSV)
    else:
        cells = table.map(lambda cell: "" if cell is None else cell if isinstance(cell, int | float) else str(cell))
        console.table(str(options.adapter), list(table.columns), cells.itertuples(index=False))


def write(table: pd.DataFrame, out: Path | TextIO, ending: str) -> None:
    """Write a table in the format of an ending.

    Raises:
        UserError: if the format does not take it.
    """
    if ending == JSON_LINES:
        table.to_json(out, orient="records", lines=True, force_ascii=False, default_handler=str)
    elif ending == CSV:
        table.to_csv(out, index=False, lineterminator="\n")
    else:
        # Such as for a column of numbers and texts.
        with as_user_error(ValueError, TypeError, before="--out: parquet does not take this table: "):
            table.infer_objects().to_parquet(out)


if __name__ == "__main__":
    main()
