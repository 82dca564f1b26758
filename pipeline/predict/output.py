"""Predictions with the columns of their rows, printed or written to a file, a batch at a time."""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pipeline.core import artifacts, console
from pipeline.core.errors import UserError
from pipeline.data import sources
from pipeline.predict.inputs import Given

if TYPE_CHECKING:
    from torch import Tensor

CSV, JSON_LINES = ".csv", ".jsonl"
Record = dict[str, Any]  # for one text or pair
Write = Callable[[Sequence[Record]], None]
# Returns the records of a batch and its number of truncated texts; reports progress to the given function.
Answer = Callable[[Given, Callable[[int], None]], tuple[list[Record], int]]


def records(given: Given, logits: "Tensor", labels: Sequence[str] | None) -> list[Record]:
    """Return each row with the label and all class probabilities, or the number, to six digits.

    If a row has a column of the same name, the prediction is called `predicted_label` and so on.
    """
    found, columns = rows_of(given), given.columns
    if labels is None:
        name = free("number", columns)
        for record, number in zip(found, logits[:, 0].tolist(), strict=True):
            record[name] = rounded(number)
        return found
    label, probabilities = free("label", columns), free("probabilities", columns)
    for record, shares in zip(found, logits.double().softmax(dim=1).tolist(), strict=True):
        record[label] = labels[shares.index(max(shares))]
        record[probabilities] = dict(zip(labels, map(rounded, shares), strict=True))
    return found


def rows_of(given: Given) -> list[Record]:
    """Return the rows with all of their columns."""
    return [{name: values[at] for name, values in given.columns.items()} for at in range(len(given.texts))]


def free(name: str, taken: sources.Columns) -> str:
    """Return the name of an output column, prefixed with `predicted_` if it is taken."""
    while name in taken:
        name = f"predicted_{name}"
    return name


def rounded(value: float) -> float:
    """Return a number rounded to six digits."""
    return float(f"{value:.6g}")


@contextmanager
def writer(out: Path | None, title: str, *, as_json: bool) -> Iterator[Write]:
    """Yield a function that writes records to a file, completely or not at all, or prints them (tables on a terminal).

    Raises:
        UserError: if the file cannot be written.
    """
    if out is None:
        yield _show(title) if sys.stdout.isatty() and not as_json else _writing(sys.stdout, as_json=as_json)
        return
    try:
        with artifacts.replacing(out) as new, new.open("w", encoding="utf-8", newline="") as file:
            yield _writing(file, as_json=out.suffix == JSON_LINES)
    except OSError as error:
        raise UserError(f"--out: {out}: cannot be written: {error.strerror}") from None


def _show(title: str) -> Write:
    def write(found: Sequence[Record]) -> None:
        flat = [_flat(record) for record in found]
        console.table(title, list(flat[0]), [list(map(_cell, row.values())) for row in flat])

    return write


def _cell(value: object) -> console.Cell:
    return value if isinstance(value, str | int | float) else "" if value is None else str(value)


def _writing(file: TextIO, *, as_json: bool) -> Write:
    if as_json:
        return lambda found: file.writelines(
            f"{json.dumps(record, ensure_ascii=False, default=str)}\n" for record in found
        )
    begun: list[csv.DictWriter[str]] = []  # at the first batch, which determines the columns

    def write(found: Sequence[Record]) -> None:
        flat = [_flat(record) for record in found]
        if not begun:
            begun.append(csv.DictWriter(file, list(flat[0]), lineterminator="\n"))
            begun[0].writeheader()
        begun[0].writerows(flat)

    return write


def _flat(record: Record) -> Record:
    """Return a record with a column for each probability."""
    *_, last = record
    flat = dict(record)
    if isinstance(flat[last], dict):
        for label, share in flat.pop(last).items():
            flat[free(f"p({label})", flat)] = share
    return flat
