"""`python -m pipeline.predict`: predict texts with a trained adapter from the command line.

Heavy packages are imported only after all checks that do not need them.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipeline.core import artifacts, console
from pipeline.core.command_line import Parser
from pipeline.core.errors import UserError, exit_on_error
from pipeline.data.encoding import encode
from pipeline.methods import adapter_task
from pipeline.methods.adapter_task import Task
from pipeline.predict import inputs, many
from pipeline.predict.inputs import Given, Source
from pipeline.predict.output import CSV, JSON_LINES, Answer, Record, records, writer
from pipeline.predict.places import here_or_in_the_repository

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROGRAM = "python -m pipeline.predict"
NO_LIMIT = 10**6  # tokens; a tokenizer without a limit reports 1e30


def parser() -> Parser:
    """Return the parser of the command line."""
    top = Parser(
        prog=PROGRAM,
        description="Print the predictions of a trained adapter of any method for texts: the label and all class "
        "probabilities, or a number; as a table on a terminal, otherwise as CSV.",
        epilog="All columns of a file are kept. An adapter for text pairs takes two arguments, two columns of a file, "
        "or lines of standard input with a tab between the two texts.",
    )
    add = top.add_argument
    add("texts", nargs="*", metavar="TEXT", help="without any, or with -, read standard input, one text per line")
    add("--adapter", type=Path, default=artifacts.ADAPTER, metavar="FOLDER", help="the adapter (%(default)s)")
    add("--base", metavar="FOLDER_OR_HUB_ID", help="the base model, if not the one that the adapter names")
    add(
        "--bank",
        type=Path,
        metavar="FOLDER",
        help="many adapters instead of one: a bank from `python -m lsr bank`, or a folder of adapters",
    )
    add("--adapter-column", metavar="NAME", help="the column of --file with the adapter for each row")
    add("--file", type=Path, help="read the texts from csv, tsv, jsonl or parquet, by extension; of any size")
    add("--column", nargs="+", metavar="NAME", help="text columns of --file (those of training, or the only one)")
    add("--skip-empty", action="store_true", help="skip rows without text and list them, instead of failing")
    add("--out", type=Path, metavar="FILE", help="write csv or jsonl, by extension, instead of printing")
    add("--force", action="store_true", help="replace --out if it exists")
    add("--json", action="store_true", help="print JSON lines")
    add("--labels", nargs="+", metavar="NAME", help="names of the labels, if the adapter has none")
    add("--max-length", type=_positive, metavar="TOKENS", help="longer texts are truncated (as in training)")
    add("--batch-size", type=_positive, default=32, metavar="TEXTS", help="texts at a time (%(default)s)")
    return top


def _positive(word: str) -> int:
    if not word.isdecimal() or int(word) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {word}")
    return int(word)


def predict(options: argparse.Namespace) -> None:
    """Read texts, run the model, and print or write the predictions, a batch at a time.

    Raises:
        UserError: for the first error; nothing is written then.
    """
    check(options)
    many.check(options)
    if options.bank is None:
        options.adapter = here_or_in_the_repository(options.adapter)
        source, length, answer = of_one(options)
    else:
        source, length, answer = many.of_bank(options)
    cut = 0
    with (
        writer(options.out, str(options.bank or options.adapter), as_json=options.json) as write,
        console.progress("predict", source.rows, "texts", console.errors) as advance,
    ):
        for given in source.batches():
            found, shortened = answer(given, advance)
            write(found)
            cut += shortened
    if cut:
        console.errors.print(f"{cut} of {source.rows} texts truncated to {length} tokens", soft_wrap=True)
    if options.out is not None:
        console.errors.print(f"{options.out}: {source.rows} row{'s' * (source.rows != 1)}", soft_wrap=True)


def of_one(options: argparse.Namespace) -> tuple[Source, int, Answer]:
    """Return the texts, the maximum length in tokens, and a function that predicts a batch with one adapter.

    Raises:
        UserError: for the first error.
    """
    known = adapter_task.read(options.adapter)
    if options.file is None:
        source = inputs.of_words(options.texts, known, skip_empty=options.skip_empty)
    else:
        source = inputs.of_file(options.file, options.column, known, skip_empty=options.skip_empty)
    with console.errors.status("loading the model"):
        from pipeline.predict.opening import check_length, open_adapter  # seconds

        model, tokenizer = open_adapter(options.adapter, options.base)
    labels, length = labels_of(model, options, known), max_length(tokenizer, options, known)
    check_length(length, tokenizer, cast("PreTrainedModel", model.get_base_model()), pairs=source.reads_pairs)

    def answer(given: Given, advance: Callable[[int], None]) -> tuple[list[Record], int]:
        logits, cut = logits_of(model, tokenizer, given, length, options.batch_size, advance)
        return records(given, logits, labels), cut

    return source, length, answer


def check(options: argparse.Namespace) -> None:
    """Check that the options are compatible and the output can be written, before computing anything.

    Raises:
        UserError: if they are not, or it cannot.
    """
    if options.file is not None and options.texts:
        raise UserError("--file: texts are taken from the file or from the arguments, got both")
    if options.file is None and options.column is not None:
        raise UserError("--column: names columns of --file, and there is none")
    if options.out is None:
        return
    where = f"--out: {options.out}"
    if options.out.suffix not in (CSV, JSON_LINES):
        raise UserError(f"{where}: the extension must be {CSV} or {JSON_LINES}")
    if options.json and options.out.suffix == CSV:
        raise UserError(f"{where}: for JSON lines the extension must be {JSON_LINES}")
    if options.out.is_dir():
        raise UserError(f"{where}: is a folder; needed: a file")
    if options.file is not None and options.out.resolve() == options.file.resolve():
        raise UserError(f"{where}: would replace the input file; choose another file")
    if options.out.exists() and not options.force:
        raise UserError(f"{where}: exists; choose another file, or replace it with --force")


def labels_of(model: Any, options: argparse.Namespace, known: Task | None) -> Sequence[str] | None:
    """Return the label names in the order of the model's outputs; None for a regression.

    Raises:
        UserError: if the number of names differs from the number of outputs.
    """
    count = model.config.num_labels
    if options.labels is not None:
        labels, where = options.labels, "--labels"
    elif known is not None:
        labels, where = known.labels, str(options.adapter / adapter_task.FILE)
    elif count == 1:
        return None
    else:
        console.errors.print(
            f"{options.adapter}: no {adapter_task.FILE}, which names the labels; see --labels", soft_wrap=True
        )
        return [model.config.id2label[position] for position in range(count)]
    if labels is None and count == 1:
        return None
    if labels is None or len(labels) != count or len(set(labels)) != count:
        got = "none" if labels is None else " ".join(labels)
        raise UserError(f"{where}: labels: {count} different names are needed, one per output of the head, got {got}")
    return labels


def max_length(tokenizer: "PreTrainedTokenizerBase", options: argparse.Namespace, known: Task | None) -> int:
    """Return the maximum length of a text in tokens.

    Raises:
        UserError: if it is unknown.
    """
    limit = tokenizer.model_max_length
    length: int = options.max_length or (limit if known is None else known.max_length)
    if length > NO_LIMIT:
        raise UserError("--max-length: needed: neither the adapter nor its tokenizer limits the length of a text")
    return length


def logits_of(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    given: Given,
    length: int,
    batch_size: int,
    advance: Callable[[int], None],
) -> tuple["Tensor", int]:  # (texts, labels)
    """Return the model's outputs, and how many texts were truncated."""
    from datasets import Dataset
    from transformers import DataCollatorWithPadding

    from pipeline.evaluation import inference

    encoded, whole = encode(given.texts, given.pairs, tokenizer, length)
    tokens = Dataset.from_dict({**encoded, "length": [len(ids) for ids in encoded["input_ids"]]})
    found = inference.logits(model, tokens, DataCollatorWithPadding(tokenizer), batch_size, advance)
    return found, sum(tokens > length for tokens in whole)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    options = parser().parse_args(arguments)
    try:
        with (
            exit_on_error("stopped; nothing was half written", PROGRAM, before=f"{PROGRAM}: "),
            console.warnings_in_lines("predict", console.errors),
        ):
            run(options)
    except SystemExit as left:
        return cast("int", left.code)
    return 0


def run(options: argparse.Namespace) -> None:
    """Predict; the reader of a pipe, such as `head`, may close it at any time."""
    try:
        predict(options)
        sys.stdout.flush()
    except BrokenPipeError:  # so that nothing is left to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
