"""`python -m pipeline.predict`: what a trained adapter says of texts, from the command line.

Heavy packages are imported after all that can be refused without them.
"""

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, cast

from pipeline import artifacts, console
from pipeline.data.texts import encode
from pipeline.errors import MISTAKE, UserError, drop_output, flush_output, leaving_in_plain_lines
from pipeline.methods import task
from pipeline.methods.task import Task
from pipeline.params import ADAPTERS
from pipeline.predict import inputs, many
from pipeline.predict.inputs import Given

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

PROGRAM = "python -m pipeline.predict"
CSV, JSON_LINES = ".csv", ".jsonl"
NO_LIMIT = 10**6  # tokens; a tokenizer that knows no limit says 1e30
Record = dict[str, Any]  # of one text or pair


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Print one line and leave."""
        self.exit(MISTAKE, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser() -> Parser:
    """Return the parser of the command line."""
    top = Parser(
        prog=PROGRAM,
        description=f"Print what a trained adapter ({', '.join(ADAPTERS)}) says of texts: a label and the probability "
        "of each, or a number. On a terminal it is a table, elsewhere CSV.",
        epilog="An adapter of pairs takes two arguments, two columns of a file, or a line of standard input with a tab "
        "between the two texts.",
    )
    add = top.add_argument
    add("texts", nargs="*", metavar="TEXT", help="without one, or for -, standard input is read, one text a line")
    add("--adapter", type=Path, default=artifacts.ADAPTER, metavar="FOLDER", help="the adapter (%(default)s)")
    add("--base", metavar="FOLDER_OR_HUB_ID", help="the base model, if not the one that the adapter names")
    add(
        "--bank",
        type=Path,
        metavar="FOLDER",
        help="many adapters in place of one: `python -m lsr bank`, or a folder each",
    )
    add("--adapter-column", metavar="NAME", help="of --file: the adapter in the bank that each row is for")
    add("--file", type=Path, help="read the texts from csv, tsv, jsonl or parquet, by the ending")
    add("--column", nargs="+", metavar="NAME", help="of --file; without it those of the training, or the only one")
    add("--out", type=Path, metavar="FILE", help="write csv or jsonl, by the ending, instead of printing")
    add("--force", action="store_true", help="replace --out if it exists")
    add("--json", action="store_true", help="print JSON lines")
    add("--labels", nargs="+", metavar="NAME", help="names of the labels, if the adapter does not say")
    add("--max-length", type=_positive, metavar="TOKENS", help="longer texts are cut; without it as in training")
    add("--batch-size", type=_positive, default=32, metavar="TEXTS", help="at a time (%(default)s)")
    return top


def _positive(word: str) -> int:
    if not word.isdecimal() or int(word) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0, got {word}")
    return int(word)


def predict(options: argparse.Namespace) -> None:
    """Read texts, ask the model, and print or write what it says.

    Raises:
        UserError: for the first thing that is wrong; nothing is written then.
    """
    check(options)
    many.check(options)
    if options.bank is not None:
        show(many.records(options), options)
        return
    known = task.read(options.adapter)
    if options.file is None:
        given = inputs.of_words(options.texts, known)
    else:
        given = inputs.of_file(options.file, options.column, known)
    with console.errors.status("loading the model"):
        from pipeline.predict.opening import open_adapter  # seconds

        model, tokenizer = open_adapter(options.adapter, options.base)
    labels = labels_of(model, options, known)
    logits = logits_of(model, tokenizer, given, max_length(tokenizer, options, known), options.batch_size)
    show(records(given, logits, labels), options)


def check(options: argparse.Namespace) -> None:
    """Check that the options go together and the output can be written, before anything is computed for it.

    Raises:
        UserError: if not.
    """
    if options.file is not None and options.texts:
        raise UserError("--file: texts are taken from the file or from the arguments, got both")
    if options.file is None and options.column is not None:
        raise UserError("--column: names columns of --file, and there is none")
    if options.out is None:
        return
    where = f"--out: {options.out}"
    if options.out.suffix not in (CSV, JSON_LINES):
        raise UserError(f"{where}: the ending must be {CSV} or {JSON_LINES}")
    if options.json and options.out.suffix == CSV:
        raise UserError(f"{where}: for JSON lines the ending must be {JSON_LINES}")
    if options.out.is_dir():
        raise UserError(f"{where}: is a folder; needed: a file")
    if options.file is not None and options.out.resolve() == options.file.resolve():
        raise UserError(f"{where}: would replace the file that is read; choose another file")
    if options.out.exists() and not options.force:
        raise UserError(f"{where}: exists; choose another file, or replace it with --force")


def labels_of(model: Any, options: argparse.Namespace, known: Task | None) -> Sequence[str] | None:
    """Return the names of the labels in the order of the model's outputs; None for a number.

    Raises:
        UserError: if there are more or fewer names than outputs.
    """
    count = model.config.num_labels
    if options.labels is not None:
        labels, where = options.labels, "--labels"
    elif known is not None:
        labels, where = known.labels, str(options.adapter / task.FILE)
    elif count == 1:
        return None
    else:
        console.errors.print(f"{options.adapter}: no {task.FILE}, which names the labels; see --labels", soft_wrap=True)
        return [model.config.id2label[position] for position in range(count)]
    if labels is None and count == 1:
        return None
    if labels is None or len(labels) != count or len(set(labels)) != count:
        got = "none" if labels is None else " ".join(labels)
        raise UserError(f"{where}: labels: {count} different names are needed, one an output of the head, got {got}")
    return labels


def max_length(tokenizer: "PreTrainedTokenizerBase", options: argparse.Namespace, known: Task | None) -> int:
    """Return at how many tokens a text is cut.

    Raises:
        UserError: if the model takes fewer, or nobody says.
    """
    limit = tokenizer.model_max_length
    if options.max_length is not None and options.max_length > limit:
        raise UserError(f"--max-length: the model takes at most {limit} tokens, got {options.max_length}")
    length: int = options.max_length or (limit if known is None else known.max_length)
    if length > NO_LIMIT:
        raise UserError("--max-length: needed: neither the adapter nor its tokenizer says how long a text may be")
    return length


def logits_of(
    model: Any, tokenizer: "PreTrainedTokenizerBase", given: Given, length: int, batch_size: int
) -> "Tensor":  # (texts, labels)
    """Return the model's outputs, with a progress bar, and say how many texts were cut."""
    from datasets import Dataset
    from transformers import DataCollatorWithPadding

    from pipeline.evaluation import inference

    encoded, whole = encode(given.texts, given.pairs, tokenizer, length)
    if cut := sum(tokens > length for tokens in whole):
        console.errors.print(f"{cut} of {len(whole)} texts cut at {length} tokens", soft_wrap=True)
    tokens = Dataset.from_dict({**encoded, "length": [len(ids) for ids in encoded["input_ids"]]})
    with console.progress("predict", len(whole), "texts", console.errors) as advance:
        return inference.logits(model, tokens, DataCollatorWithPadding(tokenizer), batch_size, advance)


def records(given: Given, logits: "Tensor", labels: Sequence[str] | None) -> list[Record]:
    """Return for each text the label and the probability of each, or the number; six digits."""
    found: list[Record] = [{"text": text} for text in given.texts]
    for record, pair in zip(found, given.pairs or [], strict=False):
        record["text_pair"] = pair
    if labels is None:
        for record, number in zip(found, logits[:, 0].tolist(), strict=True):
            record["number"] = _rounded(number)
        return found
    for record, shares in zip(found, logits.double().softmax(dim=1).tolist(), strict=True):
        record["label"] = labels[shares.index(max(shares))]
        record["probabilities"] = dict(zip(labels, map(_rounded, shares), strict=True))
    return found


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def show(found: Sequence[Record], options: argparse.Namespace) -> None:
    """Write the records to --out, whole or not at all, or print them.

    Raises:
        UserError: if the file cannot be written.
    """
    if options.out is not None:
        try:
            with artifacts.replacing(options.out) as new, new.open("w", encoding="utf-8", newline="") as file:
                _write(found, file, as_json=options.out.suffix == JSON_LINES)
        except OSError as error:
            raise UserError(f"--out: {options.out}: cannot be written: {error.strerror}") from None
        console.errors.print(f"{options.out}: {len(found)} row{'s' * (len(found) != 1)}", soft_wrap=True)
    elif options.json or not sys.stdout.isatty():
        _write(found, sys.stdout, as_json=options.json)
    else:
        flat = [_flat(record) for record in found]
        console.table(str(options.bank or options.adapter), list(flat[0]), [list(row.values()) for row in flat])


def _write(found: Sequence[Record], file: TextIO, *, as_json: bool) -> None:
    if as_json:
        file.writelines(f"{json.dumps(record, ensure_ascii=False)}\n" for record in found)
        return
    flat = [_flat(record) for record in found]
    writer = csv.DictWriter(file, list(flat[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)


def _flat(record: Record) -> Record:
    """Return a record with a column for each probability."""
    flat = dict(record)
    return flat | {f"p({label})": share for label, share in flat.pop("probabilities", {}).items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    options = parser().parse_args(arguments)
    try:
        with leaving_in_plain_lines("stopped; nothing was half written", PROGRAM, before=f"{PROGRAM}: "):
            run(options)
    except SystemExit as left:
        return cast("int", left.code)
    return 0


def run(options: argparse.Namespace) -> None:
    """Predict, for a reader who may have had enough at any time, such as `head`."""
    try:
        predict(options)
        flush_output()
    except BrokenPipeError:
        drop_output()


if __name__ == "__main__":
    sys.exit(main())
