"""`python -m pipeline.add data/tickets.csv`: describe a file in a row of data/datasets.yaml, as far as it can be seen.

The row is checked like any other, and its splits are made once, before anything is written.
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock
from ruamel.yaml import YAML

from pipeline.core import artifacts, console
from pipeline.core.console import Parser, warn_without_identity
from pipeline.core.errors import UserError
from pipeline.data import datasets, sources
from pipeline.params.dataset_row import DatasetRow
from pipeline.params.reading import check_rows, read_yaml, validated
from pipeline.params.schema import TABLES
from pipeline.params.sources import NAME
from pipeline.tasks.cells import is_missing, plain_text
from pipeline.tasks.classes import RARE_SHARE, RARE_TEXTS, of_class
from pipeline.tasks.several import labels_in

OWN = TABLES["data"].own
LOCK = Path(".cache/add.lock")  # not beside the file, in a folder whose files are inputs of the pipeline
HEADER = "# Rows of your own data; pipeline/datasets.yaml has more of them, docs/reference/params.md all keys.\n"

USUAL = ("label", "labels", "tags", "topics", "class", "target", "category", "sentiment", "stars", "rating", "score")
CUT = {"validation": 0.1, "test": 0.2}
SEEN = 1000  # rows that say whether a column is text
WORDS = 3  # a column with at least as many a row, on average, is text
MOST_CLASSES = 100
SEPARATORS = ";|,"  # of several labels in a cell
LONGEST = 30  # characters of a label
MOST_DIGITS = 10  # whole numbers with at most as many values are classes, others are numbers to predict
USUAL_TENANTS = ("tenant", "customer", "client", "account", "user")
# What is written is named so.
PROMPT = "prompt"
COMPLETION = "completion"
MESSAGES = "messages"


def main(words: Sequence[str] | None = None) -> None:
    """Look at a file, write its row, and print what was decided and how to run it.

    Raises:
        UserError: if the file cannot be read or is not in data/, there is a row of this name, or the row would not do.
    """
    parser = Parser("python -m pipeline.add", __doc__)
    parser.add_argument("file", help="csv, tsv, jsonl or parquet, in data/")
    parser.add_argument("--text", nargs="+", metavar="COLUMN", help="the column with the text, or two for pairs")
    parser.add_argument("--label", metavar="COLUMN", help="the column to predict")
    parser.add_argument(
        "--tenant", metavar="COLUMN", help="the column that says whose row it is, if each has own labels"
    )
    parser.add_argument("--name", help="of the row; by default the file's")
    with parser.parsed(words) as options:
        path = Path(os.path.relpath(options.file))
        if not path.is_relative_to(OWN.parent):
            raise UserError(f"{options.file}: DVC notices changes only in data/; move the file, or a link to it, there")
        name = options.name or re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem)
        if not re.fullmatch(NAME, name):
            raise UserError(f"--name: a row's name has letters, digits, - and _ only, got {name}")
        _check_new(name, check_rows("data"))
        table = _read(path, (options.label, options.tenant))
        content = described(table, options.text, options.label, options.tenant, path)
        row = validated(DatasetRow, content, OWN, (name,))
        row._where = str(OWN)
        loaded = datasets.load(row, name)
        LOCK.parent.mkdir(exist_ok=True)
        with FileLock(LOCK):  # another command may add a row at the same time
            _append(name, content)
        _show(name, path, table, loaded)


def _read(path: Path, kept: Collection[str | None]) -> pd.DataFrame:
    # Returns the table in a file: of columns of running text, unless they are to be kept, only the beginning.
    tables = sources.values(path, str(path), flat=True)
    first = next(tables)
    running = list[str]()
    for name in first:
        if name not in kept and _is_text(first[name]) and not _several(first[name]):
            running.append(name)
    empty = dict.fromkeys(running)  # text that memory need not hold
    return pd.concat([first, *(table.assign(**empty) for table in tables)])


def _check_new(name: str, names: Collection[str]) -> None:
    if name in names:
        raise UserError(f"--name: there is a row {name} already; choose another, or remove it if it is in {OWN}")


def _append(name: str, row: dict[str, Any]) -> None:
    # Add a row at the end of the file, whose other lines stay as they are.
    rows = {name: row}
    dumped = StringIO()
    YAML().dump(rows, dumped)
    known = {}
    before = HEADER
    if OWN.exists():
        known = read_yaml(OWN)
        before = OWN.read_text(encoding="utf-8")
    _check_new(name, known)
    with artifacts.replacing(OWN) as new:
        new.write_text(f"{before.rstrip()}\n{dumped.getvalue()}", encoding="utf-8")
        try:
            is_added = read_yaml(new) == known | rows
        except UserError:
            is_added = False
        if not is_added:
            at_end = "a row cannot be added at its end; write one key below another, without braces"
            raise UserError(f"{OWN}: {at_end}")


def _show(name: str, path: Path, table: pd.DataFrame, loaded: datasets.Loaded) -> None:
    task = loaded.task
    row = task.row
    splits = loaded.splits
    labels = np.concatenate([split["label"] for split in splits.values()])
    shown = {
        "text": " and ".join(row.text) + (", read together" if len(row.text) > 1 else ""),
        "label": f"{row.label.column}, {task.shown(labels)}",
        "scores": ", ".join(f"{metric}{of_class(metric, task)}" for metric in row.metrics),
        "splits": _sizes(loaded, len(table)),
    }
    named = [column for column in table if column.casefold() in USUAL_TENANTS]
    if row.tenant is None and named:
        shown["tenants"] = f"none; if the column {named[0]} says whose row it is: --tenant {named[0]}"
    rare = task.rare(splits["train"]["label"])
    if rare:
        shown["rare"] = rare
    console.line(f"{OWN}: added {name}: {len(table):,} rows of {path}")
    for word, decided in shown.items():
        console.line(f"  {word:8}{decided}")
    console.line(f"To change it, edit {OWN}, or remove the row there and give --text, --label, --tenant or --name")
    console.line(f"To keep both with the repository, the file by its digest: git add {OWN} && dvc add {path}")
    more = "model=smollm2" if task.writes else "train.steps=auto"  # smollm2 writes, as others do
    console.line(f"To train: dvc exp run -S data={name} -S {more}")
    warn_without_identity()


def _sizes(loaded: datasets.Loaded, rows: int) -> str:
    sizes = {split: len(texts) for split, texts in loaded.splits.items()}
    shown = ", ".join(f"{split} {size:,}" for split, size in sizes.items())
    left_out = rows - sum(sizes.values())
    if left_out <= 0:
        return f"{shown}, by a hash of the text"
    twice = "texts that come twice, or that two splits have" if loaded.task.has_mirrors else "a text that comes twice"
    return f"{shown}, by a hash of the text; {left_out:,} rows left out: no text or label, or {twice}"


def described(
    table: pd.DataFrame, text: Sequence[str] | None, label: str | None, tenant: str | None, path: Path
) -> dict[str, Any]:
    """Return the row of data of a table that was read from `path`, with the columns that are given, or else seen.

    Raises:
        UserError: if there is no such column, the first line names no columns, it remains open which ones are to be
            read or predicted, or the column to predict holds neither classes nor numbers.
    """
    if any(_is_text(pd.Series([name])) for name in table):
        raise UserError(f"{path}: the first line is a row; put one above it with names of columns, such as text,label")
    named = [name for name in (label, tenant) if name]
    sources.check_columns(table.columns, [*(text or ()), *named], str(path))
    if tenant is not None and tenant == label:
        raise UserError(f"{path}: --tenant and --label name the same column, {tenant}; they must be two")
    table = table.drop(columns=tenant or [])
    source = {"source": {"kind": "files", "files": {"train": path.as_posix()}}}
    written: dict[str, Any] = {"metrics": ["exact_match", "rouge_l"], "cut": CUT}
    if label in (None, MESSAGES) and MESSAGES in table and not text:
        return source | {"label": {"messages": MESSAGES}} | written
    if label in (None, COMPLETION) and COMPLETION in table and (text or PROMPT in table):
        return source | {"text": list(text or [PROMPT]), "label": {"completion": COMPLETION}} | written
    label = label or _label(table, text or (), path)
    of_tenants = {} if tenant is None else {"tenant": tenant}
    scored = _scored(table[label], tenant, path)
    texts = list(text or ())
    if not texts:
        texts = [column for column in table if column != label and _is_text(table[column])]
    if not 0 < len(texts) <= 2:
        raise UserError(f"{path}: which one or two columns are the text? --text {' '.join(texts or table)}")
    return {**source, "text": texts, **of_tenants, **scored, "cut": CUT}


def _label(table: pd.DataFrame, text: Sequence[str], path: Path) -> str:
    # The one with a usual name, or the only one with few values.
    columns = list[str]()
    few = list[str]()
    most = min(MOST_CLASSES, len(table) / 5)
    for column in table:
        if column in text:
            continue
        if _several(table[column]):
            columns.append(column)
            few.append(column)
        elif not _is_text(table[column]):
            columns.append(column)
            if 1 < table[column].map(str).nunique() <= most:
                few.append(column)
    named = {column.casefold(): column for column in reversed(columns)}  # the first of equal names
    for word in USUAL:
        if word in named:
            return named[word]
    if len(few) == 1:
        return few[0]
    raise UserError(f"{path}: which column is to be predicted? --label {' or '.join(few or columns or table)}")


def _is_text(values: pd.Series) -> bool:
    """Return whether a column holds running text, with words or, as in Chinese, long enough without."""
    known = _known(values.head(SEEN))
    if {type(value) for value in known} != {str}:
        return False
    text = "".join(known)
    letters = sum(map(str.isalpha, text)) / len(text)
    words = sum(map(_count_words, known)) / len(known)
    return letters > 0.5 and words >= WORDS


def _count_words(text: str) -> int:
    return max(len(text.split()), len(text) // 12)


def _several(values: pd.Series) -> dict[str, Any]:
    """Return the separator, if it is no column of lists, and the names of labels of which cells hold several, if any.

    Texts that hold a separator are classes, or running text, unless their parts are short and have letters, most of
    them are in several different cells, and there are few of them.
    """
    known = _known(values)
    kinds = {type(value) for value in known}
    if kinds == {list}:
        cells = [labels_in(value, "") for value in known]
        return {"names": sorted({*chain(*cells)})} if _are_several(cells) else {}
    if kinds != {str}:
        return {}
    for separator in SEPARATORS:
        cells = [labels_in(value, separator) for value in known]
        if _are_several(cells) and _are_names(cells):
            return {"separator": separator, "names": sorted({*chain(*cells)})}
    return {}


def _are_several(cells: Sequence[tuple[str, ...]]) -> bool:
    """Return whether a cell has several labels, of which there are few."""
    labels = {*chain(*cells)}
    is_few = 1 < len(labels) <= min(MOST_CLASSES, len(cells) / 5)
    return is_few and max(map(len, cells)) > 1


def _are_names(cells: Sequence[tuple[str, ...]]) -> bool:
    """Return whether the parts of cells are short and have letters, and most are in several different cells."""
    counts = Counter(chain(*{*cells}))
    recurring = sum(count > 1 for count in counts.values())
    are_words = all(len(part) <= LONGEST and any(map(str.isalpha, part)) for part in counts)
    return are_words and recurring > len(counts) / 2


def _known(values: pd.Series) -> list[Any]:
    return [value for value in values if not is_missing(value)]


def _scored(column: pd.Series, tenant: str | None, path: Path) -> dict[str, Any]:
    # What of a row follows from the column to predict: label, metrics, strata; the classes of tenants are found later.
    values = _known(column)
    counts = Counter(map(plain_text, values))
    numbers = pd.to_numeric(pd.Series(values, dtype=object), errors="coerce")
    are_flags = all(isinstance(value, bool) for value in values)
    are_numbers = numbers.notna().all() and not are_flags
    if are_numbers and ((numbers % 1 != 0).any() or len(counts) > MOST_DIGITS):
        label = {"column": column.name, "low": float(numbers.min()), "high": float(numbers.max())}
        return {"label": label, "metrics": ["pearson", "spearman"]}
    several = _several(column)
    if several:
        return {"label": {"several": column.name, **several}, "metrics": ["macro_f1", "micro_f1"]}
    if tenant is not None:
        return {"label": {"column": column.name}, "metrics": ["accuracy", "macro_f1"]}
    if not 1 < len(counts) <= min(MOST_CLASSES, len(values) / 2):
        raise UserError(
            f"{path}: {column.name} is no label: it has {len(counts):,} different values in {len(values):,} rows; "
            f"needed are numbers, or 2 to {MOST_CLASSES} values with several rows each; choose another --label"
        )
    if are_flags:
        return _of_classes(column.name, {"false": counts["0"], "true": counts["1"]})
    names = sorted(counts, key=float if are_numbers else None)
    return _of_classes(column.name, {name: counts[name] for name in names})


def _of_classes(column: Any, counts: Mapping[str, int]) -> dict[str, Any]:
    # What of a row follows from its classes, with how many texts each has.
    names = list(counts)
    label = {"column": column, "names": names}
    f1 = list[str]()
    if len(names) == 2:
        first, second = counts.values()
        label["positive"] = names[first >= second]  # the rarer class, or the second of equals
        f1 = ["f1"]
    least = min(counts.values())
    if least < max(RARE_TEXTS, RARE_SHARE * sum(counts.values())):
        metrics = ["macro_f1", *f1, "accuracy"]  # accuracy hardly changes if a rare class is never answered
    else:
        metrics = ["accuracy", *(f1 or ["macro_f1"])]
    scored: dict[str, Any] = {"label": label, "metrics": metrics}
    if least < RARE_TEXTS:
        scored["stratify"] = True
    return scored


if __name__ == "__main__":
    main()
