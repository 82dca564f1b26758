"""Recognize the content of a column: running text, joined labels, or numbers."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from pipeline.tasks.cells import is_missing, plain_text
from pipeline.tasks.multi_label import labels_in

SEEN = 1000  # rows that decide whether a column is text
WORDS = 3  # a column with at least as many a row, on average, is text
MAX_CLASSES = 100
SEPARATORS = ";|,"  # separators between the labels of a multi-label cell
LONGEST = 30  # characters of a label
MAX_DIGITS = 10  # whole numbers with at most as many values are classes, others are numbers to predict
# A list that is written as text, as pandas writes it to CSV.
WRITTEN_LIST = re.compile(r"""\s*\[(\s*|\s*['"\d-].*)\]\s*""", re.DOTALL)
Labels = tuple[str, ...]  # labels in one cell


def drop_missing(column: pd.Series) -> list[Any]:
    """Return the values of a column that are not missing."""
    return [value for value in column if not is_missing(value)]


def is_running_text(column: pd.Series) -> bool:
    """Return whether a column has running text rather than joined labels."""
    return is_text(column) and not detect_joined_labels(column)


def is_text(column: pd.Series) -> bool:
    """Return whether a column has running text: with several words or, as in Chinese, long without spaces."""
    beginning = column.head(SEEN)
    values = drop_missing(beginning)
    if {type(value) for value in values} != {str}:
        return False
    if are_written_lists(values):
        return False
    text = "".join(values)
    letters = sum(map(str.isalpha, text))
    words = sum(map(_count_words, values))
    is_of_letters = letters > 0.5 * len(text)
    return is_of_letters and words >= WORDS * len(values)


def are_written_lists(values: Sequence[Any]) -> bool:
    """Return whether all values are lists that are written as text, with brackets."""
    for value in values:
        if not isinstance(value, str):
            return False
        if not WRITTEN_LIST.fullmatch(value):
            return False
    return bool(values)


def _count_words(text: str) -> int:
    words = text.split()
    return max(len(words), len(text) // 12)


def detect_joined_labels(column: pd.Series) -> dict[str, Any]:
    """Return the label fields of a multi-label column: names, and the separator unless cells are lists; empty if not.

    Texts with a separator are classes or running text, unless their parts are short and have letters, most parts occur
    in several different cells, and there are few parts.
    """
    values = drop_missing(column)
    types = {type(value) for value in values}
    if types == {list}:
        cells = [labels_in(value, "") for value in values]
        return {"names": collect_names(cells)} if _are_few(cells) else {}
    if types != {str}:
        return {}
    for separator in SEPARATORS:
        cells = [labels_in(value, separator) for value in values]
        if _are_several(cells) and _are_names(cells):
            return {"separator": separator, "names": collect_names(cells)}
    return {}


def collect_names(cells: Iterable[Labels]) -> list[str]:
    """Return the different labels of cells, sorted."""
    names = set[str]()
    names.update(*cells)
    return sorted(names)


def _are_several(cells: Sequence[Labels]) -> bool:
    """Return whether cells are multi-label: labels between separators, with few different labels overall."""
    return _are_few(cells) and max(map(len, cells)) > 1


def _are_few(cells: Sequence[Labels]) -> bool:
    """Return whether cells have few different labels overall, but more than one."""
    names = collect_names(cells)
    most = min(MAX_CLASSES, len(cells) / 5)
    return 1 < len(names) <= most


def _are_names(cells: Sequence[Labels]) -> bool:
    """Return whether parts of cells are short, have letters, and mostly occur in several different cells."""
    counts = Counter[str]()
    for labels in set(cells):
        counts.update(labels)
    if not all(map(_is_name, counts)):
        return False
    recurring = [name for name, count in counts.items() if count > 1]
    return len(recurring) > len(counts) / 2


def _is_name(part: str) -> bool:
    return len(part) <= LONGEST and any(map(str.isalpha, part))


def as_numbers(column: pd.Series) -> pd.Series | None:
    """Return the values of a column as numbers; None if one is not a number."""
    values = drop_missing(column)
    if any(isinstance(value, bool) for value in values):
        return None
    as_they_are = pd.Series(values, dtype=object)
    numbers = pd.to_numeric(as_they_are, errors="coerce")
    return numbers if numbers.notna().all() else None


def numbers_to_predict(column: pd.Series) -> pd.Series | None:
    """Return the values of a column if they are numbers to predict; None if they are classes."""
    numbers = as_numbers(column)
    if numbers is None:
        return None
    has_fractions = bool((numbers % 1 != 0).any())
    different = set(map(plain_text, drop_missing(column)))
    return numbers if has_fractions or len(different) > MAX_DIGITS else None


def may_be_scale(column: pd.Series) -> bool:
    """Return whether a column has at least two different numbers that are not consecutive row numbers."""
    numbers = as_numbers(column)
    if numbers is None or numbers.nunique() < 2:
        return False
    steps = numbers.diff()[1:]
    return not steps.eq(1).all()
