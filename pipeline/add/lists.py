"""Recognize lists of labels in the cells of a column: as values, or as text, as pandas writes them to CSV."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import pandas as pd

from pipeline.add.column_types import MAX_CLASSES, are_written_lists, collect_names, drop_missing
from pipeline.core.errors import UserError
from pipeline.tasks.cells import is_missing
from pipeline.tasks.multi_label import labels_in


def are_lists_of_names(column: pd.Series) -> bool:
    """Return whether all cells are lists of texts, with as many different ones as a label may have."""
    cells = drop_missing(column)
    if not all(isinstance(cell, list) for cell in cells):
        return False
    items = chain.from_iterable(cells)
    if not all(item is None or isinstance(item, str) for item in items):
        return False
    names = collect_names(labels_in(cell, "") for cell in cells)
    return 1 < len(names) <= MAX_CLASSES


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
    names = collect_names(labels_in(value, "") for value in lists)
    count = len(names)
    if not 1 < count <= MAX_CLASSES:
        label = "label" if count == 1 else "different labels"
        needed = f"2 to {MAX_CLASSES}, or a class in each cell, such as yes and no"
        raise UserError(f"{place}: has lists with {count:,} {label} in {len(lists):,} rows; needed: {needed}")
    return {"names": names}


def _check_texts(values: Sequence[Any], place: str) -> None:
    """Check that the cells of a column are not lists that are written as text.

    Raises:
        UserError: if they are.
    """
    if are_written_lists(values):
        needed = "labels joined by ; or lists in JSON Lines or Parquet"
        raise UserError(f"{place}: has lists written as text, such as {values[0]}; needed: {needed}")
