"""Recognize lists of labels in the cells of a column: as values, or as text, as pandas writes them to CSV."""

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from pipeline.core.errors import UserError
from pipeline.tasks.cells import is_missing
from pipeline.tasks.multi_label import labels_in

MAX_LABELS = 100  # different labels of a column
AS_TEXT = re.compile(r"""\s*\[(\s*|\s*['"\d-].*)\]\s*""", re.DOTALL)


def name_labels(column: pd.Series, where: str) -> dict[str, Any]:
    """Return the label field `names` of a column of lists; empty if no cell is a list.

    Raises:
        UserError: if some cells are not lists, lists are written as text, or there are too few or too many labels.
    """
    place = f"{where}: {column.name}"
    lists = list[Any]()
    others = list[Any]()
    for value in column:
        if isinstance(value, list):
            lists.append(value)
        elif not is_missing(value):
            others.append(value)
    if not lists:
        _check_texts(others, place)
        return {}
    if others:
        needed = "a list in each cell, which may be empty"
        raise UserError(f"{place}: has lists of labels, but also {others[0]!r}; needed: {needed}")
    names = set[str]()
    for value in lists:
        labels = labels_in(value, "")
        names.update(labels)
    count = len(names)
    if not 1 < count <= MAX_LABELS:
        label = "label" if count == 1 else "different labels"
        needed = f"2 to {MAX_LABELS}, or a class in each cell, such as yes and no"
        raise UserError(f"{place}: has lists with {count:,} {label} in {len(lists):,} rows; needed: {needed}")
    return {"names": sorted(names)}


def _check_texts(values: Sequence[Any], place: str) -> None:
    """Check that the cells of a column are not lists that are written as text.

    Raises:
        UserError: if they are.
    """
    if are_texts(values):
        needed = "labels joined by ; or lists in JSON Lines or Parquet"
        raise UserError(f"{place}: has lists written as text, such as {values[0]}; needed: {needed}")


def are_texts(values: Sequence[Any]) -> bool:
    """Return whether all values are lists that are written as text, with brackets."""
    for value in values:
        if not isinstance(value, str):
            return False
        if not AS_TEXT.fullmatch(value):
            return False
    return bool(values)
