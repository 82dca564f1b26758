"""The texts of examples: parts are marked, templates filled, and choices put in."""

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence

from pipeline.params.dataset_row import DatasetRow
from pipeline.params.sources import CHOICE, FIELD, Mark, fields, is_template
from pipeline.tasks.cells import Cells, fold, text_in

ASTRAY = 2  # words by which a published word index may be off; the pronouns of WSC are off by up to one


def used(row: DatasetRow) -> list[str]:
    """Return the columns that the texts of a row are made of, without those of marks."""
    named = [name for entry in row.text for name in fields(entry) if not (row.choices and name == CHOICE)]
    return list(dict.fromkeys([*named, *row.choices]))


def of(cells: Cells, row: DatasetRow) -> list[dict[str, str]]:
    """Return the texts of a row's examples, text and text_pair (for a pair): of one, or of one for each choice.

    Raises:
        ValueError: if a value is not text, or without a part that is to be marked.
    """
    values = {name: text_in(cells[name]) for name in used(row)}
    for name in {mark.column for mark in row.mark}:
        values[name] = _marked(cells, name, [mark for mark in row.mark if mark.column == name])
    named = dict(zip(("text", "text_pair"), row.text, strict=False))
    chosen = [values | {CHOICE: values[choice]} for choice in row.choices] or [values]
    return [{name: _filled(entry, each) for name, entry in named.items()} for each in chosen]


def folded(texts: Iterable[str]) -> str:
    """Return a text that is equal where all texts are."""
    return "\n".join(map(fold, texts))


def _filled(entry: str, values: Mapping[str, str]) -> str:
    return FIELD.sub(lambda field: values[field[1]], entry) if is_template(entry) else values[entry]


def _marked(cells: Cells, column: str, marks: Sequence[Mark]) -> str:
    """Return a text with a sign before and after each part.

    Raises:
        ValueError: if it has no such part.
    """
    text: str = cells[column]
    signs = [(place, mark.sign) for mark in marks for place in _part(text, mark, cells)]
    for place, sign in sorted(signs, reverse=True):
        text = text[:place] + sign + text[place:]
    return text


def _part(text: str, mark: Mark, record: Cells) -> tuple[int, int]:
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


def _whole(record: Cells, column: str) -> int:
    try:
        return int(record[column])
    except (TypeError, ValueError):
        raise ValueError(f"{column} must be a whole number, got {record[column]!r}") from None
