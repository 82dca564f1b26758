"""Labeled texts, to which the rows of a head are fitted; and their files.

A file is CSV in UTF-8 with a header: the columns of the texts, and `label`.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lsr_onnx.errors import InputError, wrap_errors

LABEL = "label"  # the column of labels
TEXT = "text"  # the column of texts, if the bank does not name its columns or the file has others
BRACE = "{"  # begins a column's name within a template
MAX_EXAMPLES = 10_000  # maximum number of examples per file
MAX_CHARACTERS = 100_000  # maximum number of characters per cell


Label = str | float | tuple[str, ...]  # a class, a number, or the labels of a multi-label task
Text = str | list[str]  # a text, or a pair of texts


class Example(NamedTuple):
    """A labeled text, or pair of texts."""

    text: Text
    label: Label  # may be written as text, as in a CSV file: a number, or labels separated by commas


def columns_of(bank: Any) -> Sequence[str]:
    """Return the text columns on which a bank's tenants were trained."""
    versions = list(bank.versions.values())  # a copy, as other threads add tenants
    columns = versions[0].task_info.get("columns") if versions else None
    return columns or (TEXT,)


def read_file(path: Path, columns: Sequence[str]) -> list[Example]:
    """Return the labeled texts of a file; they are in `columns`, or in `text`.

    Raises:
        InputError: if it cannot be read; names the file, and the line or the columns.
    """
    try:
        with wrap_errors(path, OSError), path.open(encoding="utf-8-sig", newline="") as file:
            return parse_lines(file, columns, str(path), MAX_EXAMPLES)
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8; save the file as CSV in UTF-8") from None


def parse_lines(
    lines: Iterable[str],
    columns: Sequence[str],
    where: str,
    most: int,
) -> list[Example]:
    """Return the labeled texts, at most this many, in lines of CSV; `where` they are is named in messages.

    Raises:
        InputError: if the lines are not valid, or there are more texts.
    """
    csv.field_size_limit(MAX_CHARACTERS)
    examples = list[Example]()
    with wrap_errors(where, csv.Error):
        reader = csv.DictReader(lines, strict=True)
        header = list(reader.fieldnames or ())
        texts = _text_columns(header, columns, where)
        for place, cells in _check_cells(reader, header, where):
            if len(examples) == most:
                raise InputError(f"{where}: more than {most:,} texts; for so many, train an adapter")
            example = _read_example(cells, texts, place)
            examples.append(example)
    return examples


def _read_example(
    cells: Mapping[str, str],
    columns: Sequence[str],
    place: str,
) -> Example:
    parts = [cells[column] for column in columns]
    label = cells[LABEL].strip()
    if not label or not all(map(str.strip, parts)):
        raise InputError(f"{place}: has no text or no label")
    if len(parts) == 1:
        return Example(parts[0], label)
    return Example(parts, label)


def _check_cells(
    reader: "csv.DictReader[str]",
    header: Sequence[str],
    where: str,
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the place and the cells of each row.

    Raises:
        InputError: if a row has not one cell per column.
    """
    for cells in reader:
        place = f"{where}: line {reader.line_num}"
        if None in cells or None in cells.values():
            raise InputError(f"{place}: needed: {len(header)} cells, as in the header")
        yield place, cells


def _text_columns(header: Sequence[str], columns: Sequence[str], where: str) -> Sequence[str]:
    """Return the columns of the texts in a file.

    Raises:
        InputError: if a text column or the labels are missing.
    """
    texts = columns
    is_template = BRACE in columns[0]  # only the user can fill it
    if len(columns) == 1 and columns[0] not in header and not is_template:
        texts = (TEXT,)
    for column in (*texts, LABEL):
        if column not in header:
            present = ", ".join(header) or "none"
            needed = ", ".join((*texts, LABEL))
            raise InputError(f"{where}: no column {column!r}; needed: {needed}; columns: {present}")
    return texts
