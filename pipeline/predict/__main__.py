"""`python -m pipeline.predict`: print the predictions of a trained adapter of any method for texts.

Predictions are the label or labels with all probabilities, a number, or a generated text; as a table on a terminal,
otherwise as CSV, but a single text that is written as it is. All columns of a file are kept. An adapter for text pairs
takes two arguments, two columns of a file, or lines of standard input with a tab between the two texts.
"""

import json
import math
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import pandas as pd
import pyarrow as pa

from lsr_onnx.folder import GRAPHS
from pipeline import previous
from pipeline.core import artifacts, console
from pipeline.core.console import Parser, whole_number
from pipeline.core.errors import UserError
from pipeline.data import recognition
from pipeline.methods import adapter_task
from pipeline.methods.adapter_task import AdapterTask
from pipeline.predict import graphs, texts, unknown
from pipeline.predict.abstention import Abstention, add_option
from pipeline.predict.columns import columns_of
from pipeline.predict.graphs import OpenedGraph
from pipeline.predict.texts import STDIN
from pipeline.predict.unknown import Group, find_group
from pipeline.tasks.task import Columns

if TYPE_CHECKING:  # it takes seconds to import
    from pipeline.predict.answering import Opened

CSV = ".csv"
JSON_LINES = ".jsonl"
FORMATS = (CSV, JSON_LINES)
ALIKE = ("kind", "columns", "max_length")  # fields of tasks that tenants share whose texts are answered together
OF_FILE = ("column", "encoding", "sheet")  # options that have no effect without --file
# Options whose value is None unless it is given, as some adapters and runtimes refuse them.
BATCH_SIZE = 32
MAX_NEW_TOKENS = 256


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = _parser()
    with parser.parse(arguments, "stopped; --out was not half written", f"{parser.prog}: ") as options:
        _check(options)
        tables = _answer_rows(options)
        if options.out is not None:
            _save(tables, options.out)
        elif options.json or not sys.stdout.isatty():
            _write(tables, sys.stdout, JSON_LINES if options.json else CSV)
        else:
            _show(tables, str(options.adapter))


def _parser() -> Parser:
    parser = Parser(
        "python -m pipeline.predict",
        "Predict labels, numbers or completions for texts with a trained adapter. Prints a table on a terminal, CSV "
        "otherwise, and only the completion of a single prompt; all columns of a file are kept. For text pairs, give "
        "two arguments, two columns, or lines of standard input with a tab between the texts.",
    )
    add = parser.add_argument
    add("texts", nargs="*", metavar="TEXT", help="texts (default, or -: lines of standard input)")
    last = artifacts.BANK if artifacts.is_bank(artifacts.BANK) else artifacts.ADAPTER
    folder = f"folder of an adapter or bank (default: {artifacts.BANK} if there is one, or else {artifacts.ADAPTER})"
    add("--adapter", type=Path, metavar="FOLDER", default=last, help=folder)
    tenant = "tenant to predict for, with a bank (default with --file: the tenant column used in training)"
    add("--tenant", metavar="NAME", help=tenant)
    add(unknown.OPTION, metavar="A,B", help=unknown.HELP)
    add("--base", metavar="FOLDER_OR_HUB_ID", help="base model (default: the one that the adapter names)")
    about = (
        "torch, or a graph from `lsr export --to onnx`: float32, or 8 bits one text at a time (default: %(default)s)"
    )
    add("--runtime", choices=(graphs.TORCH, *GRAPHS), default=graphs.TORCH, help=about)
    add("--file", type=Path, help="read the texts from a CSV, TSV, JSONL, JSON, XLSX or Parquet file")
    column = "text column of --file, or a template such as '{title}. {text}'; two for text pairs (default: as in "
    column += "training, or the only column)"
    add("--column", nargs="+", action="extend", metavar="NAME", help=column)
    add("--encoding", metavar="NAME", help="encoding of --file, such as cp1252 (default: detected)")
    add("--sheet", metavar="NAME", help="sheet of an XLSX file (default: the first)")
    add("--skip-empty", action="store_true", help="skip rows without text and count them (default: stop at the first)")
    add("--out", type=Path, metavar="FILE", help="write a .csv or .jsonl file instead of printing")
    add("--force", action="store_true", help="overwrite --out if it exists")
    add("--json", action="store_true", help="print JSON Lines")
    add_option(parser)
    about = "stop at a text that is longer than the adapter reads (default: truncate such texts and count them)"
    add("--strict", action="store_true", help=about)
    longest = f"maximum number of generated tokens per prompt (default: {MAX_NEW_TOKENS})"
    add("--max-new-tokens", type=whole_number(1, 10**6), metavar="N", help=longest)
    size = f"texts per batch (default: {BATCH_SIZE})"
    add("--batch-size", type=whole_number(1, 10**6), metavar="N", help=size)
    return parser


def _check(options: Namespace) -> None:
    """Check that options are compatible with each other and with the adapter.

    Raises:
        UserError: if they do not.
    """
    if options.file is not None and options.texts:
        raise UserError("--file: texts are taken from the file or from the arguments, got both")
    if options.file is None:
        for name in OF_FILE:
            if getattr(options, name) is not None:
                raise UserError(f"--{name}: requires --file")
    else:
        recognition.check_options([options.file], options.encoding, options.sheet)
    graphs.check_runtime(options.adapter, options.runtime)
    if options.batch_size is not None and options.runtime == graphs.INT8:
        raise UserError(f"--batch-size: has no effect with --runtime {options.runtime}, where each text passes alone")
    options.batch_size = options.batch_size or BATCH_SIZE
    out = options.out
    if out is None and options.force:
        raise UserError("--force: has no effect without --out")
    if out is not None and options.json:
        raise UserError("--json: has no effect with --out, whose extension names the format")
    if out is not None and out.suffix not in FORMATS:
        raise UserError(f"--out: {out}: the extension must be one of {', '.join(FORMATS)}")
    if out is not None and out.exists() and (out.is_dir() or not options.force):
        raise UserError(f"--out: {out}: exists; choose another file, or replace it with --force")


def _answer_rows(options: Namespace) -> Iterator[pd.DataFrame]:
    """Yield tables of rows with answers in additional columns; a single completion is printed alone.

    Raises:
        UserError: if --max-new-tokens is given and the adapter generates no text; or as what reads and answers them.
    """
    identity = artifacts.identity(options.adapter)
    previous.print_note_of(options.adapter)
    task, tenants, group = _tasks(options)
    abstention = Abstention(options.min_probability, task)
    generates = task.task.head.generates
    if options.max_new_tokens is not None and not generates:
        raise UserError(f"--max-new-tokens: has no effect: {options.adapter} predicts, and generates no text")
    streams = generates and _is_for_one_text(options)
    opened = None
    count = 0
    truncated = 0
    with console.progress("predict", None, "texts", console.errors) as advance:
        for table, asked in texts.read(options, task, tenants, group):
            if opened is None:
                opened = _open_predictor(options, task, group)
                artifacts.check_not_replaced(options.adapter, identity)
            if generates and not isinstance(opened, OpenedGraph):
                answers, cut = opened.generate(
                    asked["text"],
                    table.index,
                    options.max_new_tokens or MAX_NEW_TOKENS,
                    advance,
                    shown=streams,
                )
            else:
                several = list(tenants.values()) if options.tenant is None else []
                outputs, cut = opened.outputs(pa.table(asked), table.index, advance)
                answers = columns_of(np.asarray(outputs), asked, task, several)
            count += len(table)
            truncated += cut
            if not streams:
                yield _beside(table, abstention.apply(answers))
    abstention.print_note()
    if truncated:
        console.note(f"{truncated} of {count} texts truncated to {task.max_length} tokens")


def _open_predictor(options: Namespace, task: AdapterTask, group: Group | None) -> "Opened | OpenedGraph":
    if options.runtime != graphs.TORCH:
        return OpenedGraph(options.adapter, task, options.runtime, options.batch_size, is_strict=options.strict)
    # These take seconds: after what can be checked without.
    from pipeline.methods.device import advise_on_threads
    from pipeline.predict.answering import Opened

    advise_on_threads(console.note)
    return Opened(options.adapter, options.base, task, options.batch_size, is_strict=options.strict, group=group)


def _is_for_one_text(options: Namespace) -> bool:
    """Return whether only the answer to a single text is printed."""
    if options.out is not None or options.json:
        return False
    return len(options.texts) == 1 and options.texts != [STDIN]


def _tasks(options: Namespace) -> tuple[AdapterTask, dict[str, AdapterTask], Group | None]:
    """Return the task of the adapter or the chosen tenant, the tasks of all tenants of a bank, and the unknown ones'.

    Raises:
        UserError: if there is no such adapter, or it needs a bank.
    """
    if options.runtime != graphs.TORCH:
        tenants = _tenants_of_graphs(options)
    elif artifacts.is_bank(options.adapter):
        tenants = adapter_task.read_bank(options.adapter)
    else:
        tenants = {}
    group = None
    if options.labels is not None:
        group = find_group(options.labels, options.tenant, tenants)
        tenants[group.name] = group.task
    if tenants:
        if options.tenant is None:
            _check_alike(tenants)
        first = next(iter(tenants.values()))
        return tenants.get(options.tenant, first), tenants, group
    if options.runtime != graphs.TORCH:
        return graphs.read_task(options.adapter), {}, None
    task = adapter_task.read(options.adapter)
    if options.tenant is not None or task.tenants is not None:
        raise UserError("--tenant: needs --adapter with a bank of tenants, which `lsr bank` creates from their adapter")
    return task, {}, None


def _check_alike(tenants: Mapping[str, AdapterTask]) -> None:
    """Check that the texts of tenants can be answered together: they come from one file, and are truncated alike.

    Raises:
        UserError: if a tenant differs in that from the first.
    """
    first_name, first = next(iter(tenants.items()))
    for name, task in tenants.items():
        for field in ALIKE:
            own = getattr(task, field)
            other = getattr(first, field)
            if own != other:
                difference = f"{field} is {own} for {name} and {other} for {first_name}"
                raise UserError(f"--tenant: required: {difference}")


def _tenants_of_graphs(options: Namespace) -> dict[str, AdapterTask]:
    """Return the tasks of all tenants of graphs; empty for a single task.

    Raises:
        UserError: if an option has no effect on them.
    """
    tenants = graphs.read_tenants(options.adapter)
    without_effect = ["base", "labels"] if tenants else ["base", "labels", "tenant"]
    for name in without_effect:
        if getattr(options, name) is not None:
            raise UserError(f"--{name}: has no effect with --runtime {options.runtime}")
    return tenants


def _beside(table: pd.DataFrame, answers: Columns) -> pd.DataFrame:
    """Return a table with answers in additional columns, renamed if the table has such names."""
    for name, values in answers.items():
        while name in table:
            name = f"predicted_{name}"
        table[name] = pd.Series(values, table.index, dtype=object)
    return table


def _save(tables: Iterable[pd.DataFrame], path: Path) -> None:
    with artifacts.replace_atomically(path) as new:
        try:
            file = new.open("w", encoding="utf-8", newline="")
        except OSError as error:  # its own message would name the temporary file
            raise UserError(f"--out: {path}: cannot be written: {error.strerror}") from None
        with file:
            count = _write(tables, file, path.suffix)
    console.note(f"{path}: {count} row{'s' * (count != 1)}")


def _show(tables: Iterable[pd.DataFrame], title: str) -> None:
    parts = list(tables)  # the widths of columns depend on each cell
    if parts:
        table = pd.concat(parts)
        console.table(title, list(table.columns), table.itertuples(index=False))


def _write(tables: Iterable[pd.DataFrame], out: TextIO, ending: str) -> int:
    """Write tables to one file as they arrive, csv or jsonl by its extension; return the number of rows."""
    count = 0
    for table in tables:
        if ending == JSON_LINES:
            for record in table.to_dict("records"):
                line = json.dumps(_to_json(record), ensure_ascii=False, separators=(",", ":"), default=str)
                out.write(f"{line}\n")
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


def _to_json(value: Any) -> Any:
    """Return a value with null in place of missing ones and of numbers that JSON does not have."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list):
        return [_to_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _to_json(item) for key, item in value.items()}
    is_infinite = isinstance(value, float) and math.isinf(value)
    return None if is_infinite or pd.isna(value) else value


if __name__ == "__main__":
    main()
