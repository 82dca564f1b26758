"""The texts of examples: parts are marked, templates filled, and choices put in."""

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

import pandas as pd

from pipeline.params.dataset_row import DatasetRow
from pipeline.params.sources import CHOICE, FIELD, Mark, fields, is_template
from pipeline.tasks.cells import fold, refuse_other_than_text

ASTRAY = 2  # words by which a published word index may be off; the pronouns of WSC are off by up to one


def used(row: DatasetRow) -> list[str]:
    """Return the columns that the texts of a row are made of, without those of marks."""
    named = [name for entry in row.text for name in fields(entry) if not (row.choices and name == CHOICE)]
    return list(dict.fromkeys([*named, *row.choices]))


def of(table: pd.DataFrame, row: DatasetRow) -> list[pd.DataFrame]:
    """Return the texts of examples, in the columns text and text_pair (for a pair): one table, or one for each choice.

    The first value that is not text, or without a part that is to be marked, is refused with its line or row.
    """
    values = {name: table[name] for name in used(row)}
    for column in values.values():
        refuse_other_than_text(column)
    for name in {mark.column for mark in row.mark}:
        values[name] = _marked(table, name, [mark for mark in row.mark if mark.column == name])
    named = dict(zip(("text", "text_pair"), row.text, strict=False))
    chosen = [values | {CHOICE: values[choice]} for choice in row.choices] or [values]
    return [pd.DataFrame({name: _filled(entry, each) for name, entry in named.items()}, table.index) for each in chosen]


def folded(made: Sequence[pd.DataFrame]) -> pd.Series:
    """Return a text for each row that is equal where all texts are."""
    parts = [text[name].map(fold).astype("str") for text in made for name in text]  # no rows have no type
    return reduce(lambda one, other: one + "\n" + other, parts)


def _filled(entry: str, values: Mapping[str, pd.Series]) -> pd.Series:
    if not is_template(entry):
        return values[entry]
    # Every other part is the name of a column.
    return reduce(add, (values[part] if at % 2 else part for at, part in enumerate(FIELD.split(entry))))


def _marked(table: pd.DataFrame, column: str, marks: Sequence[Mark]) -> pd.Series:
    """Return a column of texts with a sign before and after each part.

    Raises:
        ValueError: if a text has no such part; names the line or row.
    """
    texts = []
    for line, record in zip(table.index, table.to_dict("records"), strict=True):
        text = record[column]
        try:
            signs = [(place, mark.sign) for mark in marks for place in _part(text, mark, record)]
        except ValueError as error:
            raise ValueError(f"{table.index.name} {line}: {error}") from None
        for place, sign in sorted(signs, reverse=True):
            text = text[:place] + sign + text[place:]
        texts.append(text)
    return pd.Series(texts, table.index, dtype=object)


def _part(text: str, mark: Mark, record: Mapping[str, Any]) -> tuple[int, int]:
    """Return where a part begins and where it ends, exclusively.

    Raises:
        ValueError: if the text has no such part.
    """
    if mark.word is None or mark.says is None:
        begin, end = (_whole(record, str(column)) for column in (mark.start, mark.end))
        if not 0 <= begin < end <= len(text):
            raise ValueError(f"{mark.start} {begin} and {mark.end} {end} are not in {mark.column}: {text!r}")
        return begin, end
    number, says = _whole(record, mark.word), str(record[mark.says])
    words = [word.start() for word in re.finditer(r"\S+", text)]
    pattern = r"(?<!\w)" + r"\s+".join(map(re.escape, says.split())) + r"(?!\w)"

    def astray(part: re.Match[str]) -> int:
        return abs(bisect_right(words, part.start()) - 1 - number)

    part = min(re.finditer(pattern, text, re.IGNORECASE), key=astray, default=None)
    if part is None or part.start() == part.end() or astray(part) > ASTRAY:
        raise ValueError(f"{mark.says} {says!r} is not at word {number} of {mark.column}: {text!r}")
    return part.span()


def _whole(record: Mapping[str, Any], column: str) -> int:
    try:
        return int(record[column])
    except (TypeError, ValueError):
        raise ValueError(f"{column} must be a whole number, got {record[column]!r}") from None
