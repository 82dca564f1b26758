"""Predictions with the columns of their rows, printed or written to a file."""

import sys
from pathlib import Path

import pandas as pd

from pipeline.core import artifacts, console
from pipeline.core.errors import UserError, first_line
from pipeline.tasks.task import Columns

JSON_LINES = ".jsonl"
FORMATS = (".csv", JSON_LINES, ".parquet")


def with_columns(table: pd.DataFrame, columns: Columns) -> pd.DataFrame:
    """Return a table with more columns, prefixed with `predicted_` where a name is taken."""
    for name, values in columns.items():
        while name in table:
            name = f"predicted_{name}"
        table = table.assign(**{name: pd.Series(values, table.index, dtype=object)})
    return table


def write(table: pd.DataFrame, out: Path) -> None:
    """Write a table, completely or not at all, in the format of its extension.

    Raises:
        UserError: if the file cannot be written.
    """
    with artifacts.replacing(out) as new:
        if out.suffix == JSON_LINES:
            table.to_json(new, orient="records", lines=True, force_ascii=False, default_handler=str)
        elif out.suffix == ".csv":
            table.to_csv(new, index=False, lineterminator="\n")
        else:
            try:
                table.infer_objects().to_parquet(new)
            except (ValueError, TypeError) as error:  # such as a column of numbers and texts
                raise UserError(f"{out}: parquet does not take this table: {first_line(error)}") from None


def show(table: pd.DataFrame, title: str, *, as_json: bool) -> None:
    """Print a table: on a terminal as such, otherwise as CSV, or as JSON lines."""
    if as_json:
        table.to_json(sys.stdout, orient="records", lines=True, force_ascii=False, default_handler=str)
    elif sys.stdout.isatty():
        console.table(title, list(table.columns), table.map(_cell).itertuples(index=False))
    else:
        table.to_csv(sys.stdout, index=False, lineterminator="\n")


def _cell(value: object) -> console.Cell:
    return value if isinstance(value, str | int | float) else "" if value is None else str(value)
