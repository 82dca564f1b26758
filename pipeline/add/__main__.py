"""`python -m pipeline.add data/tickets.csv`: describe a file in a row of data/datasets.yaml, as far as it can be seen.

The row is checked like any other, and its splits are made once, before anything is written.
"""

import os
import re
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline import tasks
from pipeline.add.columns import described
from pipeline.core import artifacts, console
from pipeline.core.command_line import Parser, warn_without_identity
from pipeline.core.errors import UserError, exit_on_error
from pipeline.data import datasets, sources
from pipeline.params.dataset_row import DatasetRow
from pipeline.params.reading import load_rows, read_yaml, validated
from pipeline.params.schema import TABLES
from pipeline.params.sources import NAME

if TYPE_CHECKING:
    from datasets import Dataset

PROGRAM = "python -m pipeline.add"
OWN = TABLES["data"].own
HEADER = "# Rows of your own data; pipeline/datasets.yaml has more of them, docs/reference/params.md all keys.\n"


def main(words: Sequence[str] | None = None) -> None:
    """Look at a file, write its row, and print what was decided and how to run it.

    Raises:
        SystemExit: with exit code 2 after a mistake, which leaves everything as it was.
    """
    parser = Parser(PROGRAM, __doc__)
    parser.add_argument("file", help="csv, tsv, jsonl or parquet, in data/")
    parser.add_argument("--text", nargs="+", metavar="COLUMN", help="the column with the text, or two for pairs")
    parser.add_argument("--label", metavar="COLUMN", help="the column to predict")
    parser.add_argument("--name", help="of the row; by default the file's")
    options = parser.parse_args(words)
    with exit_on_error("stopped", PROGRAM):
        add(options.file, options.text, options.label, options.name)


def add(file: str, text: Sequence[str] | None, label: str | None, name: str | None) -> None:
    """Write the row of a file, and print what was decided and how to run it.

    Raises:
        UserError: if the file cannot be read or is not in data/, there is a row of this name, or the row would not do.
    """
    path = Path(os.path.relpath(file))
    if not path.is_relative_to(OWN.parent):
        raise UserError(f"{file}: DVC notices changes only in data/; move the file, or a link to it, there")
    name = name or re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem)
    if not re.fullmatch(NAME, name):
        raise UserError(f"--name: a row's name has letters, digits, - and _ only, got {name}")
    if name in load_rows("data"):
        raise UserError(f"{OWN.parent}: there is a row {name} already; remove it, or choose another --name")
    with sources.explained(str(path)):
        table = sources.read_file(path)
    content = described(table, text, label, path)
    row = validated(DatasetRow, content, OWN, (name,))
    row._where = str(OWN)
    loaded = datasets.load(row, name)
    _append({name: content})
    _show(name, row, path, len(table), loaded.splits)


def _append(rows: dict[str, Any]) -> None:
    # Add rows at the end of the file, whose other lines stay as they are.
    dumped = StringIO()
    YAML().dump(rows, dumped)
    before = OWN.read_text(encoding="utf-8") if OWN.exists() else HEADER
    after = f"{before.rstrip()}\n{dumped.getvalue()}"
    try:
        is_added = YAML(typ="safe", pure=True).load(after) == (read_yaml(OWN) if OWN.exists() else {}) | rows
    except YAMLError:
        is_added = False
    if not is_added:
        raise UserError(f"{OWN}: a row cannot be added at its end; write one key below another, without braces")
    with artifacts.replacing(OWN) as new:
        new.write_text(after, encoding="utf-8")


def _show(name: str, row: DatasetRow, path: Path, rows: int, splits: Mapping[str, "Dataset"]) -> None:
    used = sum(map(len, splits.values()))
    sizes = ", ".join(f"{split} {len(texts):,}" for split, texts in splits.items())
    left_out = f"; {rows - used:,} rows left out: no text or label, or a text that comes twice" if used < rows else ""
    task = tasks.of(row)
    shown = {
        "text": " and ".join(row.text) + (", read together" if len(row.text) > 1 else ""),
        "label": f"{row.label.column}, {task.shown(np.concatenate([split['label'][:] for split in splits.values()]))}",
        "scores": f"{', '.join(row.metrics)}{f' of {task.names[1]}' if 'f1' in row.metrics else ''}",
        "splits": f"{sizes}, by a hash of the text{left_out}",
    }
    console.line(f"{OWN}: added {name}: {rows:,} rows of {path}")
    for word, said in shown.items():
        console.line(f"  {word:8}{said}")
    console.line(f"To change any of it, edit {OWN}, or remove the row there and give --text, --label or --name")
    console.line(f"To keep both with the repository, the file by its digest: git add {OWN} && dvc add {path}")
    console.line(f"To train: dvc exp run -S data={name}")
    warn_without_identity()


if __name__ == "__main__":
    main()
