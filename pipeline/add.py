"""`python -m pipeline.add data/tickets.csv`: describe a file in a row of data/datasets.yaml, as far as it can be seen.

The row is checked like any other, and its splits are made once, before anything is written.
"""

import argparse
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from ruamel.yaml import YAML

from pipeline.core import artifacts, console
from pipeline.core.command_line import Parser
from pipeline.core.errors import UserError, exit_on_error
from pipeline.core.git import warn_without_identity
from pipeline.data import datasets, labels, sources, texts
from pipeline.params.dataset_row import DatasetRow, Number
from pipeline.params.reading import load_rows, read_yaml, validated
from pipeline.params.schema import TABLES
from pipeline.params.sections import NAME

if TYPE_CHECKING:
    from datasets import Dataset

PROGRAM = "python -m pipeline.add"
OWN = TABLES["data"].own
HEADER = "# Rows of your own data; pipeline/datasets.yaml has more of them, docs/reference/params.md all keys.\n"
USUAL = ("label", "labels", "class", "target", "category", "sentiment", "stars", "rating", "score")  # names of labels
CUT = {"validation": 0.1, "test": 0.2}
WORDS = 3  # a column with at least as many a row, on average, is text
MOST_CLASSES = 100
MOST_DIGITS = 10  # whole numbers with at most as many values are classes, others are numbers to predict
FEW = 50  # rows of a class, of which a random cut could leave a split hardly any
SHOWN = 12  # classes


def main(words: Sequence[str] | None = None) -> None:
    """Look at a file, write its row, and print what was decided and how to run it.

    Raises:
        SystemExit: with exit code 2 after a mistake, which leaves everything as it was.
    """
    parser = Parser(prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
        UserError: if the file cannot be read or is not in data/, lacks a column, or leaves open which columns to read;
            or if there is a row of this name.
    """
    path = Path(os.path.relpath(file))
    if path.parts[0] != OWN.parts[0]:
        raise UserError(f"{file}: DVC notices changes only in data/; move the file, or a link to it, there")
    name = name or re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem)
    if not re.fullmatch(NAME, name):
        raise UserError(f"--name: a row's name has letters, digits, - and _ only, got {name}")
    if name in load_rows("data"):
        raise UserError(f"{OWN.parent}: there is a row {name} already; remove it, or choose another --name")
    with sources.explained(str(path)):
        table = sources.read_file(path)
    sources.check_columns(table.columns, [*(text or []), *([label] if label else [])], str(path))
    label = label or _label_of(table, text or (), path)
    scored = _scored(table[label], path)
    text = list(text or _texts_of(table.drop(columns=label), path))
    content = {"source": {"kind": "files", "files": {"train": path.as_posix()}}, "text": text, **scored}
    row = validated(DatasetRow, content, OWN, (name,))
    row._where = str(OWN)
    loaded = datasets.load(row, name)
    _append({name: content})
    _show(name, row, path, len(table), loaded.splits)


def _label_of(table: pd.DataFrame, text: Sequence[str], path: Path) -> str:
    """Return the column to predict: the one with a usual name, or the only one with few values.

    Raises:
        UserError: if there is none, or several.
    """
    columns = [column for column in table if column not in text and not _is_text(table[column])]
    named = [column for word in USUAL for column in columns if column.casefold() == word]
    few = [column for column in columns if 1 < table[column].map(str).nunique() <= min(MOST_CLASSES, len(table) / 5)]
    if not named and len(few) != 1:
        raise UserError(f"{path}: which column is to be predicted? --label {' or '.join(few or columns or table)}")
    return (named or few)[0]


def _texts_of(table: pd.DataFrame, path: Path) -> list[str]:
    """Return the one or two columns that hold text.

    Raises:
        UserError: if there is none, or more.
    """
    found = [column for column in table if _is_text(table[column])]
    if not 0 < len(found) <= 2:
        raise UserError(f"{path}: which one or two columns are the text? --text {' '.join(found or table)}")
    return found


def _is_text(values: pd.Series) -> bool:
    """Return whether a column holds running text, with words or, as in Chinese, long enough without."""
    known = _known(values)
    if not known or not all(isinstance(value, str) for value in known):
        return False
    letters = sum(sum(map(str.isalpha, value)) for value in known) / sum(map(len, known))
    words = sum(max(len(value.split()), len(value) // 12) for value in known) / len(known)
    return letters > 0.5 and words >= WORDS


def _known(values: pd.Series) -> list[Any]:
    return [value for value in values if not texts.is_missing(value)]


def _scored(column: pd.Series, path: Path) -> dict[str, Any]:
    """Return the part of a row that follows from the column to predict: label, metrics and cut.

    Raises:
        UserError: if the column holds neither classes nor numbers.
    """
    values = _known(column)
    numbers = pd.to_numeric(pd.Series(values, dtype=object), errors="coerce")
    counts = Counter(map(labels.plain_text, values))
    cut: dict[str, Any] = {"cut": CUT}
    is_number = numbers.notna().all() and not all(isinstance(value, bool) for value in values)
    if is_number and ((numbers % 1 != 0).any() or len(counts) > MOST_DIGITS):
        label: dict[str, Any] = {"low": float(numbers.min()), "high": float(numbers.max())}
        metrics = ["pearson", "spearman"]
    elif 1 < len(counts) <= MOST_CLASSES:
        names = sorted(counts, key=lambda name: (float(name), name) if is_number else (0.0, name))
        if all(isinstance(value, bool) for value in values):
            names = ["false", "true"]
        label = {"names": names}
        metrics = ["accuracy", "f1" if len(names) == 2 else "macro_f1"]
        cut |= {"stratify": True} if min(counts.values()) < FEW else {}
    else:
        raise UserError(
            f"{path}: {column.name} is no label: it has {len(counts):,} different values in {len(values):,} rows, and "
            f"needs 2 to {MOST_CLASSES}, or numbers; choose another --label"
        )
    return {"label": {"column": column.name, **label}, "metrics": metrics, **cut}


def _append(rows: dict[str, Any]) -> None:
    """Add rows at the end of the file, whose other lines stay as they are.

    Raises:
        UserError: if the file then does not hold them, as after a last line that is not a row of its own.
    """
    yaml, dumped = YAML(), StringIO()
    yaml.dump(rows, dumped)
    before = OWN.read_text(encoding="utf-8") if OWN.exists() else HEADER
    after = f"{before.rstrip()}\n{dumped.getvalue()}"
    if YAML(typ="safe", pure=True).load(after) != (read_yaml(OWN) if OWN.exists() else {}) | rows:
        raise UserError(f"{OWN}: a row cannot be added at its end; write one key below another, without braces")
    with artifacts.replacing(OWN) as new:
        new.write_text(after, encoding="utf-8")


def _show(name: str, row: DatasetRow, path: Path, rows: int, splits: Mapping[str, "Dataset"]) -> None:
    used = sum(map(len, splits.values()))
    sizes = ", ".join(f"{split} {len(texts):,}" for split, texts in splits.items())
    left_out = f"; {rows - used:,} rows left out: no text or label, or a text that comes twice" if used < rows else ""
    shown = {
        "text": " and ".join(row.text) + (", read together" if len(row.text) > 1 else ""),
        "label": f"{row.label.column}, {_label_shown(row, splits)}",
        "scores": f"{', '.join(row.metrics)}{f' of {row.names[1]}' if 'f1' in row.metrics else ''}",
        "splits": f"{sizes}, by a hash of the text{left_out}",
    }
    console.line(f"{OWN}: added {name}: {rows:,} rows of {path}")
    for word, said in shown.items():
        console.line(f"  {word:8}{said}")
    console.line(f"To change any of it, edit {OWN} and check it with: python -m pipeline.params")
    console.line(f"To keep both with the repository, the file by its digest: git add {OWN} && dvc add {path}")
    console.line(f"To train: dvc exp run -S data={name}")
    warn_without_identity()


def _label_shown(row: DatasetRow, splits: Mapping[str, "Dataset"]) -> str:
    if isinstance(row.label, Number):
        return f"a number from {row.label.low:g} to {row.label.high:g}"
    counts = Counter(row.names[label] for split in splits.values() for label in split["label"])
    listed = ", ".join(f"{name} {counts[name]:,}" for name in row.names[:SHOWN])
    more = f" and {len(row.names) - SHOWN} more" if len(row.names) > SHOWN else ""
    first, *_, last = row.names
    numbers = all(name.lstrip("-").isdecimal() for name in row.names) and len(row.names) > 2
    instead = f"; as a number: low: {first} and high: {last} in place of names, metrics: [pearson]" if numbers else ""
    return f"{len(row.names)} classes: {listed}{more}{instead}"


if __name__ == "__main__":
    main()
