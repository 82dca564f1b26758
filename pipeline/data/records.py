"""Convert a record of a source to the texts of its examples: mark parts, fill templates, separate choices."""

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.data.texts import checked_text
from pipeline.params.rows import CHOICE, FIELD, Examples, Mark, fields, is_template

Record = Mapping[str, Any]  # a value for each column
Texts = tuple[str, ...]  # the text or pair of one example
ASTRAY = 2  # words by which a published word index may be off; the pronouns of WSC are off by up to one


def reader(row: Examples) -> Callable[[Record], list[Texts]]:
    """Return a function from a record to the texts of its examples: a single one, or one per choice.

    The function raises ValueError for a value that is not text, and for a mark that is not in its text.
    """
    if not row.mark and not any(map(is_template, row.text)):
        return lambda record: [tuple(checked_text(record[column]) for column in row.text)]
    named = dict.fromkeys(name for entry in row.text for name in fields(entry) if not (row.choices and name == CHOICE))

    def read(record: Record) -> list[Texts]:
        values = {column: checked_text(record[column]) for column in (*named, *row.choices)}
        for column in {mark.column: None for mark in row.mark}:
            values[column] = _marked(values[column], [mark for mark in row.mark if mark.column == column], record)
        if not row.choices:
            return [_filled(row.text, values)]
        return [_filled(row.text, values | {CHOICE: values[choice]}) for choice in row.choices]

    return read


def _filled(entries: Sequence[str], values: Mapping[str, str]) -> Texts:
    return tuple(
        FIELD.sub(lambda field: values[field[1]], entry) if is_template(entry) else values[entry] for entry in entries
    )


def _marked(text: str, marks: Sequence[Mark], record: Record) -> str:
    """Return the text with a sign before and after each part."""
    signs = []
    for mark in marks:
        begin, end = _part(text, mark, record)
        signs += [(begin, mark.sign), (end, mark.sign)]
    for position, sign in sorted(signs, reverse=True):
        text = text[:position] + sign + text[position:]
    return text


def _part(text: str, mark: Mark, record: Record) -> tuple[int, int]:
    """Return where a part begins and where it ends, exclusively.

    Raises:
        ValueError: if the text has no such part.
    """
    if mark.word is None or mark.says is None:
        begin, end = (whole(record, str(column)) for column in (mark.start, mark.end))
        if not 0 <= begin < end <= len(text):
            raise ValueError(f"{mark.start} {begin} and {mark.end} {end} are not in {mark.column}: {text!r}")
        return begin, end
    number, says = whole(record, mark.word), checked_text(record[mark.says])
    words = [word.start() for word in re.finditer(r"\S+", text)]
    pattern = r"(?<!\w)" + r"\s+".join(map(re.escape, says.split())) + r"(?!\w)"

    def astray(part: re.Match[str]) -> int:
        return abs(bisect_right(words, part.start()) - 1 - number)

    part = min(re.finditer(pattern, text, re.IGNORECASE), key=astray, default=None)
    if part is None or part.start() == part.end() or astray(part) > ASTRAY:
        raise ValueError(f"{mark.says} {says!r} is not at word {number} of {mark.column}: {text!r}")
    return part.span()


def whole(record: Record, column: str) -> int:
    """Return the whole number in a column.

    Raises:
        ValueError: if there is no whole number.
    """
    try:
        return int(record[column])
    except (TypeError, ValueError):
        raise ValueError(f"{column} must be a whole number, got {record[column]!r}") from None
