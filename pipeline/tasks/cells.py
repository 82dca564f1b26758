"""The values of a row's cells: missing values, their text, and the texts composed of several cells."""

import hashlib
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import isnan
from typing import Any

from pipeline.params.dataset_entry import DatasetEntry
from pipeline.params.sources import CHOICE, FIELD, Mark, fields, is_template

Cells = Mapping[str, Any]  # cells of a row by column
Record = tuple[str, Cells]  # where a row is, such as line 7, and its cells
WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})(\.0+)?", re.ASCII)
HALVES = re.compile("[\ud800-\udfff]")  # lone surrogates, which JSON can hold and a tokenizer cannot take
TEXT_COLUMNS = ("text", "text_pair")  # text columns of examples
ASTRAY = 2  # words by which a published word index may be off; the pronouns of WSC are off by up to one


def is_missing(value: object) -> bool:
    """Return whether a cell is empty: null, or only whitespace."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and isnan(value))


def text_in(value: object) -> str:
    """Return a value that is a string without lone surrogates.

    Raises:
        ValueError: if it is not such a string.
    """
    if isinstance(value, str) and not HALVES.search(value):
        return value
    raise ValueError(f"expected a string, got {value!r}")


def plain_text(value: object) -> str:
    """Normalize True, 1, 1.0 and the text 1.0, which depend on the file format, to the same stripped text; 01 stays."""
    if isinstance(value, int | float) and value == value // 1:
        return str(int(value))
    text = str(value).strip()
    if not WHOLE.fullmatch(text):
        return text
    digits, _, _ = text.partition(".")
    return str(int(digits))


def spelling_of(value: object) -> str:
    """Return a name as the file spells it, stripped; numbers, whose form depends on the file format, are normalized."""
    return str(value).strip() if isinstance(value, str | bool) else plain_text(value)


def unify_spellings(
    rows: Iterable[Record], names_in: Callable[[Cells], Iterable[tuple[str, object]]]
) -> Iterator[Record]:
    """Check that each name in a file, such as a class, has a single spelling, and yield the rows.

    `plain_text` treats 1 and 1.0 as equal, because file formats write numbers differently. As texts in one file, they
    may be two names. `names_in` returns the columns and values of a row that are names.

    Raises:
        ValueError: for the first row that spells a name differently from an earlier row; names both.
    """
    first: dict[tuple[str, str], tuple[str, str]] = {}  # first spelling and its location, by column and name
    for where, cells in rows:
        for column, value in names_in(cells):
            name = plain_text(value)
            spelling = spelling_of(value)
            before, there = first.setdefault((column, name), (spelling, where))
            if spelling != before:
                both = f"{column} is {spelling!r} here and {before!r} in {there}"
                raise ValueError(f"{where}: {both}, which would be one name, {name}: write it in one way")
        yield where, cells


def hash_of(text: str) -> int:
    """Return the first eight bytes of a text's SHA-256 as a big-endian integer: numeric order equals byte order."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8])


def place_of(text: str) -> float:
    """Map a text by its hash to a number in [0, 1), uniform over texts."""
    return (hash_of(text) >> 12) / 2.0**52  # 52 bits, so that rounding never reaches 1


def fold(text: str) -> str:
    """Normalize a text for comparisons: NFKC, case folding and whitespace folding."""
    normal = unicodedata.normalize("NFKC", text)
    words = unicodedata.normalize("NFKC", normal.casefold()).split()
    return " ".join(words)


def round_significant(value: float, digits: int) -> float:
    """Round a number to significant digits."""
    return float(f"{value:.{digits}g}")


def text_columns(entry: DatasetEntry) -> list[str]:
    """Return the columns of which the texts of a row are composed, without the columns of marks."""
    names = list[str]()
    for template in entry.text:
        names += fields(template)
    if entry.choices:
        names = [name for name in names if name != CHOICE]
    return list(dict.fromkeys([*names, *entry.choices]))


def has_mirrors(entry: DatasetEntry) -> bool:
    """Return whether two rows can have the same texts in different order, which needs several columns."""
    return len(text_columns(entry)) > 1


def column_texts(cells: Cells, entry: DatasetEntry) -> dict[str, str]:
    """Return the text of each column of which a row's texts are composed, with marks inserted.

    Raises:
        ValueError: if a value is not text, or without a part that is to be marked.
    """
    values = {name: text_in(cells[name]) for name in text_columns(entry)}
    marks = dict[str, list[Mark]]()
    for mark in entry.mark:
        marks.setdefault(mark.column, []).append(mark)
    for name, own in marks.items():
        values[name] = _insert_marks(cells, name, own)
    return values


def texts_of(cells: Cells, entry: DatasetEntry) -> list[dict[str, str]]:
    """Return the texts (text, and text_pair for a pair) of a row's examples: one example, or one per choice.

    Raises:
        ValueError: if a value is not text, or without a part that is to be marked.
    """
    values = column_texts(cells, entry)
    if not entry.choices:
        return [_fill_texts(entry, values)]
    texts = list[dict[str, str]]()
    for choice in entry.choices:
        chosen = values | {CHOICE: values[choice]}
        texts.append(_fill_texts(entry, chosen))
    return texts


def fold_texts(texts: Iterable[str]) -> str:
    """Combine texts into a key that is equal if and only if all texts are equal after `fold`."""
    return "\n".join(map(fold, texts))


def _fill_texts(entry: DatasetEntry, values: Mapping[str, str]) -> dict[str, str]:
    named = zip(TEXT_COLUMNS, entry.text, strict=False)
    return {name: _fill(template, values) for name, template in named}


def _fill(template: str, values: Mapping[str, str]) -> str:
    if is_template(template):
        return FIELD.sub(lambda field: values[field[1]], template)
    return values[template]


def _insert_marks(cells: Cells, column: str, marks: Sequence[Mark]) -> str:
    text: str = cells[column]
    signs = list[tuple[int, str]]()
    for mark in marks:
        begin, end = _part(text, mark, cells)
        signs.append((begin, mark.sign))
        signs.append((end, mark.sign))
    for place, sign in sorted(signs, reverse=True):
        text = text[:place] + sign + text[place:]
    return text


def _part(text: str, mark: Mark, record: Cells) -> tuple[int, int]:  # where it begins, and ends exclusively
    if mark.word is None or mark.text is None:
        begin = _whole(record, str(mark.start))
        end = _whole(record, str(mark.end))
        if not 0 <= begin < end <= len(text):
            raise ValueError(f"{mark.start} {begin} and {mark.end} {end} are not in {mark.column}: {text!r}")
        return begin, end
    number = _whole(record, mark.word)
    phrase = str(record[mark.text])
    words = [word.start() for word in re.finditer(r"\S+", text)]
    spaced = r"\s+".join(map(re.escape, phrase.split()))
    pattern = rf"(?<!\w){spaced}(?!\w)"

    def astray(part: re.Match[str]) -> int:
        word = bisect_right(words, part.start()) - 1
        return abs(word - number)

    parts = re.finditer(pattern, text, re.IGNORECASE)
    part = min(parts, key=astray, default=None)
    if part is None or part.start() == part.end() or astray(part) > ASTRAY:
        raise ValueError(f"{mark.text} {phrase!r} is not at word {number} of {mark.column}: {text!r}")
    return part.span()


def _whole(record: Cells, column: str) -> int:
    try:
        return int(record[column])
    except (TypeError, ValueError):
        raise ValueError(f"{column} must be a whole number, got {record[column]!r}") from None
