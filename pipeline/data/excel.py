"""Read the rows of an Excel sheet, each cell as the text that a csv file of the sheet would have."""

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from lsr_onnx.errors import first_line
from pipeline.core.errors import nearest
from pipeline.data import opening

MAX_ROWS = 1_048_576  # limit of a sheet in Excel
MAX_CELLS = 100_000_000  # limit to all rows together: a short row may name a cell far to the right
NEEDED = ("openpyxl", "defusedxml")  # with defusedxml, openpyxl expands no XML entities
INSTALL = "pip install -c constraints.txt -e '.[excel]'"


def sheets(path: Path) -> list[str]:
    """Return the names of the sheets of a file.

    Raises:
        ValueError: if it cannot be read, is too large unpacked, or a required package is not installed.
    """
    with closing(_open_workbook(path)) as book:
        return [sheet.title for sheet in book.worksheets]


def rows(path: Path, sheet: str | None) -> Iterator[tuple[int, list[str | None]]]:
    """Yield the number of each non-empty row, and its cells up to the last non-empty one.

    The default is the first sheet. Empty cells are None, and so are formulas without stored results.

    Raises:
        ValueError: if it cannot be read, has no such sheet, or is too large unpacked.
    """
    with closing(_open_workbook(path)) as book:
        names = [known.title for known in book.worksheets]
        if not names:
            raise ValueError("no sheet with rows")
        if sheet is not None and sheet not in names:
            raise ValueError(f"no sheet {sheet!r}{nearest(sheet, names)}; sheets: {', '.join(names)}")
        for number, cells in enumerate(_values(book[sheet or names[0]]), start=1):
            row = [_text(cell) for cell in cells]
            while row and row[-1] is None:
                row.pop()
            if row:
                yield number, row


def _open_workbook(path: Path) -> Any:
    """Open a workbook with openpyxl, which reads some rows at a time.

    Raises:
        ValueError: as of `sheets`.
    """
    for package in NEEDED:
        if importlib.util.find_spec(package) is None:
            raise ValueError(f"the package {package} is not installed; install the extra excel with: {INSTALL}")
    _check_size(path)
    from openpyxl import load_workbook

    with warnings.catch_warnings(action="ignore"):  # warnings concern styles and filters, which hold no cell
        try:
            return load_workbook(path, read_only=True, data_only=True, keep_links=False)
        except Exception as error:  # a damaged file can raise errors of any type
            raise ValueError(f"cannot be read as xlsx: {first_line(error)}") from None


def _check_size(path: Path) -> None:
    """Check the declared unpacked size of the zip, beyond which zipfile does not read.

    Raises:
        ValueError: if it is too large, or not a zip.
    """
    try:
        with ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except BadZipFile:
        raise ValueError(
            "cannot be read as xlsx: it is not a zip archive; save it as xlsx again, without a password"
        ) from None
    most = opening.most_unpacked(path)
    if size > most:
        raise ValueError(opening.too_large(most))


def _values(sheet: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the values of each row of a sheet.

    Raises:
        ValueError: if the sheet is damaged, or has too many.
    """
    sheet.reset_dimensions()  # a file may state its dimensions wrongly
    rows = iter(sheet.iter_rows(values_only=True))
    count = 0
    for number in range(MAX_ROWS + 1):
        try:
            row = next(rows, None)
        except Exception as error:  # openpyxl raises errors of any kind, as on opening
            raise ValueError(f"cannot be read as xlsx: {first_line(error)}") from None
        if row is None:
            return
        count += len(row)
        if number == MAX_ROWS or count > MAX_CELLS:
            raise ValueError(f"a sheet has at most {MAX_ROWS:,} rows, and {MAX_CELLS:,} cells")
        yield row


def _text(value: Any) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, float) and value.is_integer():  # 1 and 1.0 are one number of Excel's
        return str(int(value))
    return str(value)
