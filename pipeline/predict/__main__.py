"""`python -m pipeline.predict`: print the predictions of a trained adapter of any method for texts.

They are the label and all class probabilities, or a number; as a table on a terminal, otherwise as CSV. All columns of
a file are kept. An adapter for text pairs takes two arguments, two columns of a file, or lines of standard input with a
tab between the two texts.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pipeline.core import artifacts, console
from pipeline.core.command_line import Parser, whole_number
from pipeline.core.errors import UserError, exit_on_error
from pipeline.methods import adapter_task
from pipeline.predict import output, texts

PROGRAM = "python -m pipeline.predict"


def parser() -> Parser:
    """Return the parser of the command line."""
    top = Parser(PROGRAM, __doc__)
    add = top.add_argument
    add("texts", nargs="*", metavar="TEXT", help="without any, or with -, read standard input, one text per line")
    add("--adapter", type=Path, default=artifacts.ADAPTER, metavar="FOLDER", help="the adapter (%(default)s)")
    add("--base", metavar="FOLDER_OR_HUB_ID", help="the base model, if not the one that the adapter names")
    add("--file", type=Path, help="read the texts from csv, tsv, jsonl or parquet, by extension")
    add("--column", nargs="+", metavar="NAME", help="text columns of --file (those of training, or the only one)")
    add("--skip-empty", action="store_true", help="skip rows without text and list them, instead of failing")
    add("--out", type=Path, metavar="FILE", help="write csv, jsonl or parquet, by extension, instead of printing")
    add("--force", action="store_true", help="replace --out if it exists")
    add("--json", action="store_true", help="print JSON lines")
    add("--batch-size", type=whole_number(1, 10**6), default=32, metavar="TEXTS", help="at a time (%(default)s)")
    return top


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
    if out is not None and out.suffix not in output.FORMATS:
        raise UserError(f"--out: {out}: the extension must be one of {', '.join(output.FORMATS)}")
    if out is not None and out.exists() and (out.is_dir() or not options.force):
        raise UserError(f"--out: {out}: exists; choose another file, or replace it with --force")


def predict(options: argparse.Namespace) -> None:
    """Read texts, run the model, and print or write the predictions.

    Raises:
        UserError: for the first error; nothing is written then.
    """
    check(options)
    task = adapter_task.read(options.adapter)
    if options.file is None:
        given = texts.read_words(options.texts, task)
    else:
        given = texts.read_columns(options.file, options.column, task)
    table, asked = texts.checked(given, skip_empty=options.skip_empty)
    from datasets import Dataset  # takes seconds, as does all that answers: after what can be checked without

    from pipeline.predict.answering import answer

    found = answer(options.adapter, options.base, task, Dataset.from_dict(asked), options.batch_size, "predict")
    if found.truncated:
        truncated = f"{found.truncated} of {len(table)} texts truncated to {task.max_length} tokens"
        console.errors.print(truncated, soft_wrap=True)
    table = output.with_columns(table, task.task.printed(found.outputs, task.labels))
    if options.out is None:
        output.show(table, str(options.adapter), as_json=options.json)
    else:
        output.write(table, options.out)
        console.errors.print(f"{options.out}: {len(table)} row{'s' * (len(table) != 1)}", soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        SystemExit: with code 2 after a mistake, 1 if a file cannot be read or written, 130 after Ctrl-C.
    """
    options = parser().parse_args(arguments)
    with exit_on_error("stopped; nothing was half written", PROGRAM, before=f"{PROGRAM}: "):
        predict(options)


if __name__ == "__main__":
    main()
