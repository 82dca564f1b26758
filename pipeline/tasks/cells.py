"""The values of a row's cells: missing values, their text, and the texts composed of several cells."""

import hashlib
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import isnan
from typing import Any

from lsr_onnx.errors import HALVES
from pipeline.params.dataset_entry import DatasetEntry
from pipeline.params.sources import CHOICE, FIELD, MarkedSpan, fields, is_template

Cells = Mapping[str, Any]  # cells of a row by column
Record = tuple[str, Cells]  # place of a row, such as line 7, and its cells
Name = tuple[str, str]  # a column, and the name of a class, label or tenant in it
Names = Iterable[tuple[str, object]]  # columns, and values in them that are names
Bounds = tuple[int, int]  # the first character of a part of a text, and the first one after it
WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})(\.0+)?", re.ASCII)
TEXT_COLUMNS = ("text", "text_pair")  # text columns of examples
ASTRAY = 2  # words by which a published word index may be off; the pronouns of WSC are off by up to one


def is_missing(value: object) -> bool:
    """Return whether a cell is empty: null, or only whitespace."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, float):
        return isnan(value)
    return value is None


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
        whole = int(value)
        return str(whole)
    text = str(value).strip()
    if not WHOLE.fullmatch(text):
        return text
    digits, _, _ = text.partition(".")
    return str(int(digits))


def spelling_of(value: object) -> str:
    """Return a name as the file spells it, stripped; numbers, whose form depends on the file format, are normalized."""
    if isinstance(value, str | bool):
        return str(value).strip()
    return plain_text(value)


def unify_spellings(
    rows: Iterable[Record],
    names_in: Callable[[Cells], Names],
) -> Iterator[Record]:
    """Check that each name in a file, such as a class, has a single spelling, and yield the rows.

    `plain_text` treats 1 and 1.0 as equal, because file formats write numbers differently. As texts in one file, they
    may be two names. `names_in` returns the columns and values of a row that are names.

    Raises:
        ValueError: for the first row that spells a name differently from an earlier row; names both.
    """
    spellings: dict[Name, str] = {}
    locations: dict[Name, str] = {}
    for where, cells in rows:
        for column, value in names_in(cells):
            plain = plain_text(value)
            name = (column, plain)
            spelling = spelling_of(value)
            first = spellings.setdefault(name, spelling)
            location = locations.setdefault(name, where)
            if spelling != first:
                both = f"{column} is {spelling!r} here and {first!r} in {location}"
                raise ValueError(f"{where}: {both}, which would be one name, {plain}: write it in one way")
        yield where, cells


def hash_of(text: str) -> int:
    """Return the first eight bytes of a text's SHA-256 as a big-endian integer: numeric order equals byte order."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8])


def place_of(text: str) -> float:
    """Map a text by its hash to a number in [0, 1), uniform over texts."""
    bits = hash_of(text) >> 12  # 52 bits, so that rounding never reaches 1
    return bits / 2.0**52


def fold(text: str) -> str:
    """Normalize a text for comparisons: NFKC, case folding and whitespace folding."""
    normal = unicodedata.normalize("NFKC", text)
    folded = normal.casefold()
    normal_again = unicodedata.normalize("NFKC", folded)
    words = normal_again.split()
    return " ".join(words)


def round_significant(value: float, digits: int) -> float:
    """Round a number to significant digits."""
    return float(f"{value:.{digits}g}")


def text_columns(entry: DatasetEntry) -> list[str]:
    """Return the columns of which the texts of a row are composed, without the columns that say where spans are."""
    names = list[str]()
    for template in entry.text:
        names += fields(template)
    if entry.choices:
        names = [name for name in names if name != CHOICE]
    names += entry.choices
    different = dict.fromkeys(names)
    return list(different)


def has_mirrors(entry: DatasetEntry) -> bool:
    """Return whether two rows can have the same texts in different order, which needs several columns."""
    return len(text_columns(entry)) > 1


def column_texts(cells: Cells, entry: DatasetEntry) -> dict[str, str]:
    """Return the text of each column of which a row's texts are composed, with the signs of spans inserted.

    Raises:
        ValueError: if a value is not text, or without a part that is to be marked.
    """
    values = dict[str, str]()
    for name in text_columns(entry):
        values[name] = text_in(cells[name])
    spans = dict[str, list[MarkedSpan]]()
    for span in entry.span:
        spans.setdefault(span.column, []).append(span)
    for name, own in spans.items():
        values[name] = _insert_signs(cells, name, own)
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
    texts = dict[str, str]()
    for name, template in zip(TEXT_COLUMNS, entry.text, strict=False):
        texts[name] = fill(template, values)
    return texts


def fill(template: str, values: Mapping[str, str]) -> str:
    """Return the text of a template, or of a column, for the values of its columns."""
    if not is_template(template):
        return values[template]

    def value_of(field: re.Match[str]) -> str:
        name = field[1]
        return values[name]

    return FIELD.sub(value_of, template)


def _insert_signs(
    cells: Cells,
    column: str,
    spans: Sequence[MarkedSpan],
) -> str:
    text: str = cells[column]
    signs = list[tuple[int, str]]()
    for span in spans:
        begin, end = _bounds_of(text, span, cells)
        signs.append((begin, span.sign))
        signs.append((end, span.sign))
    for place, sign in sorted(signs, reverse=True):
        before = text[:place]
        after = text[place:]
        text = before + sign + after
    return text


def _bounds_of(text: str, span: MarkedSpan, cells: Cells) -> Bounds:
    if span.word is None or span.text is None:
        return _bounds_by_characters(text, span, cells)
    number = _whole(cells, span.word)
    phrase = str(cells[span.text])
    bounds = _find_phrase(text, phrase, number)
    if bounds is None:
        raise ValueError(f"{span.text} {phrase!r} is not at word {number} of {span.column}: {text!r}")
    return bounds


def _bounds_by_characters(text: str, span: MarkedSpan, cells: Cells) -> Bounds:
    begin = _whole(cells, str(span.start))
    end = _whole(cells, str(span.end))
    if not 0 <= begin < end <= len(text):
        raise ValueError(f"{span.start} {begin} and {span.end} {end} are not in {span.column}: {text!r}")
    return begin, end


def _find_phrase(text: str, phrase: str, number: int) -> Bounds | None:
    """Return where a phrase is in a text, nearest to the word with this number; None if it is not within ASTRAY."""
    first_characters = list[int]()
    for word in re.finditer(r"\S+", text):
        first_characters.append(word.start())
    words = map(re.escape, phrase.split())
    spaced = r"\s+".join(words)
    pattern = rf"(?<!\w){spaced}(?!\w)"

    def distance(part: re.Match[str]) -> int:
        first = part.start()
        words_to_there = bisect_right(first_characters, first)
        return abs(words_to_there - 1 - number)

    parts = re.finditer(pattern, text, re.IGNORECASE)
    nearest = min(parts, key=distance, default=None)
    if nearest is None or distance(nearest) > ASTRAY:
        return None
    begin, end = nearest.span()
    if begin == end:  # an empty phrase
        return None
    return begin, end


def _whole(cells: Cells, column: str) -> int:
    value = cells[column]
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ValueError(f"{column} must be a whole number, got {value!r}") from None
