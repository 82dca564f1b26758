"""What the columns of a file are: which hold text, which one is to be predicted, and how that is scored."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.core.errors import UserError
from pipeline.data.sources import check_columns
from pipeline.tasks.cells import is_missing, plain_text

USUAL = ("label", "labels", "class", "target", "category", "sentiment", "stars", "rating", "score")  # names of labels
CUT = {"validation": 0.1, "test": 0.2}
SEEN = 1000  # rows that say whether a column is text
WORDS = 3  # a column with at least as many a row, on average, is text
MOST_CLASSES = 100
MOST_DIGITS = 10  # whole numbers with at most as many values are classes, others are numbers to predict
FEW = 50  # rows of a class, of which a random cut could leave a split hardly any


def described(table: pd.DataFrame, text: Sequence[str] | None, label: str | None, path: Path) -> dict[str, Any]:
    """Return the row of data of a table that was read from `path`, with the columns that are given, or else seen.

    Raises:
        UserError: if there is no such column, the first line names no columns, it remains open which ones are to be
            read or predicted, or the column to predict holds neither classes nor numbers.
    """
    if any(_is_text(pd.Series([name])) for name in table):
        raise UserError(f"{path}: the first line is a row; put one above it with names of columns, such as text,label")
    check_columns(table.columns, [*(text or ()), *([label] if label else ())], str(path))
    label = label or _label(table, text or (), path)
    scored = _scored(table[label], path)
    source = {"kind": "files", "files": {"train": path.as_posix()}}
    return {"source": source, "text": list(text or _texts(table.drop(columns=label), path)), **scored}


def _label(table: pd.DataFrame, text: Sequence[str], path: Path) -> str:
    # The one with a usual name, or the only one with few values.
    columns = [column for column in table if column not in text and not _is_text(table[column])]
    named = [column for word in USUAL for column in columns if column.casefold() == word]
    few = [column for column in columns if 1 < table[column].map(str).nunique() <= min(MOST_CLASSES, len(table) / 5)]
    if not named and len(few) != 1:
        raise UserError(f"{path}: which column is to be predicted? --label {' or '.join(few or columns or table)}")
    return (named or few)[0]


def _texts(table: pd.DataFrame, path: Path) -> list[str]:
    # The one or two columns that hold text.
    found = [column for column in table if _is_text(table[column])]
    if not 0 < len(found) <= 2:
        raise UserError(f"{path}: which one or two columns are the text? --text {' '.join(found or table)}")
    return found


def _is_text(values: pd.Series) -> bool:
    """Return whether a column holds running text, with words or, as in Chinese, long enough without."""
    known = _known(values.head(SEEN))
    if not known or not all(isinstance(value, str) for value in known):
        return False
    letters = sum(sum(map(str.isalpha, value)) for value in known) / sum(map(len, known))
    words = sum(max(len(value.split()), len(value) // 12) for value in known) / len(known)
    return letters > 0.5 and words >= WORDS


def _known(values: pd.Series) -> list[Any]:
    return [value for value in values if not is_missing(value)]


def _scored(column: pd.Series, path: Path) -> dict[str, Any]:
    # What of a row follows from the column to predict: label, metrics and cut.
    values = _known(column)
    counts = Counter(map(plain_text, values))
    numbers = pd.to_numeric(pd.Series(values, dtype=object), errors="coerce")
    are_flags = all(isinstance(value, bool) for value in values)
    are_numbers = numbers.notna().all() and not are_flags
    if are_numbers and ((numbers % 1 != 0).any() or len(counts) > MOST_DIGITS):
        ends = {"low": float(numbers.min()), "high": float(numbers.max())}
        return {"label": {"column": column.name, **ends}, "metrics": ["pearson", "spearman"], "cut": CUT}
    if not 1 < len(counts) <= min(MOST_CLASSES, len(values) / 2):
        raise UserError(
            f"{path}: {column.name} is no label: it has {len(counts):,} different values in {len(values):,} rows; "
            f"needed are numbers, or 2 to {MOST_CLASSES} values with several rows each; choose another --label"
        )
    names = ["false", "true"] if are_flags else sorted(counts, key=float if are_numbers else None)
    metrics = ["accuracy", "f1" if len(names) == 2 else "macro_f1"]
    stratified = {"stratify": True} if min(counts.values()) < FEW else {}
    return {"label": {"column": column.name, "names": names}, "metrics": metrics, "cut": CUT, **stratified}
