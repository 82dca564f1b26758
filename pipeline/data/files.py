"""Read a data file, some rows at a time, by its extension: csv, tsv, JSON, Excel or parquet.

Python splits the lines of csv and tsv: pandas silently fills short lines, and ends an unquoted line at a lone carriage
return.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from lsr_onnx.errors import HALVES
from pipeline.data import excel, opening
from pipeline.params.sources import CSV, EXCEL, JSON, PARQUET, SEPARATED, TableSource, ending_of
from pipeline.tasks.cells import Record

ROWS = 1000  # rows per table in memory
TAB = "\t"
ENDINGS = (*SEPARATED, *JSON, EXCEL, PARQUET)
Line = tuple[int, Sequence[str | None]]  # number of the line or row, and its fields
Lines = Iterable[Line]


def read_file(path: Path, source: TableSource) -> Iterator[Record]:
    """Yield the rows of a source's file with all their cells.

    Raises:
        ValueError: if it cannot be read, as OSError; callers add the place with `sources.wrap_reading_errors`.
    """
    opening.check_is_file(path, "the root of the repository")
    ending = ending_of(path)
    if ending not in ENDINGS:
        raise ValueError(f"the extension must be one of {', '.join(ENDINGS)}")
    try:
        yield from _records(path, ending, source)
    except UnicodeDecodeError as error:
        raise ValueError(_undecodable(path, error)) from None


def read_separated(
    lines: Lines, names: Sequence[str] | None, *, drops_broken: bool = False, unit: str = "line"
) -> Iterator[Record]:
    """Yield rows as mappings by column names, which by default are in the first line.

    Raises:
        ValueError: if two names are equal, or a row has a wrong number of fields, unless broken rows are dropped; or if
            one of several columns without a name has a value.
    """
    rows = iter(lines)
    if names is None:
        names = _header(rows)
    named = [name for name in names if name]
    has_nameless = len(names) > len(named) + 1  # one may be the numbers of rows, as pandas writes them
    if len(set(named)) < len(named):
        raise ValueError(f"columns must differ from each other, got {', '.join(names)}")
    width = len(names)
    for number, fields in rows:
        place = f"{unit} {number}"
        if len(fields) == width:
            cells = dict(zip(names, fields, strict=True))
            if has_nameless:
                _check_nameless(names, fields, place)
                del cells[""]
            yield place, cells
        elif drops_broken:
            yield place, dict.fromkeys(names)
        else:
            plural = "" if len(fields) == 1 else "s"
            raise ValueError(f"{place} has {len(fields)} column{plural}, not {width}")


def _check_nameless(names: Sequence[str], fields: Sequence[str | None], place: str) -> None:
    """Check that columns without a name are empty, such as those that a spreadsheet writes after the last one.

    Raises:
        ValueError: if one has a value.
    """
    for position, (name, value) in enumerate(zip(names, fields, strict=True), start=1):
        if not name and value:
            raise ValueError(f"{place} has a value in column {position}, which has no name in the header")


def fields_of(ending: str, delimiter: str | None) -> Callable[[Iterable[str]], Lines]:
    """Return the function that splits lines into fields: with quotes, except for tsv without a given delimiter."""
    if delimiter is None and ending != CSV:
        return tab_separated
    return lambda lines: _split_quoted(lines, delimiter or ",")


def tab_separated(lines: Iterable[str]) -> Lines:
    """Yield the fields of tab-separated lines, in which quotes are ordinary text."""
    for number, line in enumerate(lines, start=1):
        content = line.removesuffix("\n").removesuffix("\r")
        if content:
            yield number, content.split(TAB)


def _split_quoted(lines: Iterable[str], delimiter: str) -> Lines:
    csv.field_size_limit(2**31 - 1)  # the default is 131,072 characters
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    begin = 1
    try:
        for fields in reader:
            if fields:
                yield begin, fields
            begin = reader.line_num + 1
    except csv.Error as error:
        reason = str(error)
        if reason.startswith("new-line character"):
            reason = "a carriage return (\\r) stands alone; end lines with \\n or \\r\\n, or quote the text"
        raise ValueError(f"line {begin}: {reason}") from None


def _records(path: Path, ending: str, source: TableSource) -> Iterator[Record]:
    if ending in SEPARATED:
        yield from _read_separated_file(path, ending, source)
        return
    if ending == EXCEL:
        yield from _sheet(path, source)
        return
    records = _parquet(path) if ending == PARQUET else _json(path, source.encoding)
    each = source.each.split(".") if source.each else []
    for place, record in records:
        for item in _items(record, each, place):
            yield place, item


def _read_separated_file(path: Path, ending: str, source: TableSource) -> Iterator[Record]:
    split = fields_of(ending, source.delimiter)
    drops_broken = source.broken_lines == "drop"
    with opening.open_text(path, source.encoding) as file:
        yield from read_separated(split(file), source.columns, drops_broken=drops_broken)


def _sheet(path: Path, source: TableSource) -> Iterator[Record]:
    rows = excel.rows(path, source.sheet)
    names: Sequence[str] | None = source.columns
    if names is None:
        names = _header(rows)
    whole = _pad_rows(rows, len(names))
    yield from read_separated(whole, names, unit="row")


def _pad_rows(rows: Lines, width: int) -> Lines:
    """Pad rows to a width: a sheet's rows end at the last cell with content."""
    for number, row in rows:
        lacking = width - len(row)
        yield number, [*row, *[None] * lacking]


def _header(lines: Iterator[Line]) -> list[str]:
    """Return the names of columns in the first line; empty for an empty file."""
    _, header = next(lines, (0, ()))
    return [name or "" for name in header]


def _json(path: Path, encoding: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a JSON list that is the whole file, or of JSON lines."""
    with opening.open_text(path, encoding) as file:
        lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
        first = next(lines, None)
        if first is None:
            return
        number, line = first
        if line.lstrip().startswith("["):
            text = line + file.read()
            yield from _json_list(text, number)
            return
        for number, line in chain([first], lines):
            place = f"line {number}"
            yield place, _check_record(_parse_json(line, number), place, line)


def _json_list(text: str, begin: int) -> Iterator[tuple[str, dict[str, Any]]]:
    records = _parse_json(text, begin)
    for position, record in enumerate(records, start=1):
        place = f"item {position}"
        yield place, _check_record(record, place, text)


def _parse_json(text: str, begin: int) -> Any:
    """Parse a JSON text that begins in this line of a file.

    Raises:
        ValueError: with the line, if it is not JSON.
    """
    try:
        return json.loads(text.strip())
    except json.JSONDecodeError as error:
        raise ValueError(f"line {begin + error.lineno - 1} is not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {begin} is not JSON: {error}") from None


def _check_record(record: Any, place: str, text: str) -> dict[str, Any]:
    """Check that the value of a JSON text is a record, and return it.

    Raises:
        ValueError: if it is not an object, or contains a lone surrogate, which only an escape can write.
    """
    if "\\" in text:
        whole = json.dumps(record, ensure_ascii=False)
        if HALVES.search(whole):
            raise ValueError(f"{place} is not JSON: it contains a lone surrogate (invalid Unicode)")
    if not isinstance(record, dict):
        raise ValueError(f"{place} must be a JSON object, got {type(record).__name__}")
    return record


def _items(record: Any, path: Sequence[str], where: str) -> Iterator[dict[str, Any]]:
    # Yield the record once for each object in the lists along a path, with the object in place of the list.
    if not path:
        yield record
        return
    inner = record.get(path[0])
    items = inner if isinstance(inner, list) else [inner]
    if not items or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"{where}: no list of objects at {path[0]}")
    for item in items:
        for inner_record in _items(item, path[1:], where):
            yield {**record, path[0]: inner_record}


def _undecodable(path: Path, error: UnicodeDecodeError) -> str:
    """Return the message that a file has another encoding than expected; for UTF-8, with the line."""
    remedy = "`encoding` in the entry names another encoding, and python -m pipeline.add recognizes many"
    if error.encoding != "utf-8":
        return f"is not {error.encoding}; {remedy}"
    with opening.open_bytes(path) as file:
        for number, line in enumerate(file, start=1):
            if not is_utf_8(line):
                return f"line {number} is not UTF-8; {remedy}"
    return f"is not UTF-8; {remedy}"


def is_utf_8(line: bytes) -> bool:
    """Return whether a line can be decoded as UTF-8."""
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, buffer_size=2**20) as file:  # without a buffer size, a group of rows is read whole
        number = 0
        for batch in file.iter_batches(ROWS):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row
