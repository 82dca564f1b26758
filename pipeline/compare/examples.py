"""The test examples of the tasks, written by the arena next to its records: texts and labels."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline import params
from pipeline.arena.record import FOLDER
from pipeline.compare.cells import Cell
from pipeline.core.errors import UserError, first_line
from pipeline.evaluation import scores

PAIR = "text_pair"
TOLERANCE = 2e-6  # of a score with six digits
OF_NUMBERS = 0.005  # if predictions are numbers with six digits, perhaps nearly constant
NUMBERS = ("pearson", "spearman")  # a task with one of these metrics predicts numbers, not classes


class Examples(NamedTuple):
    """The test split of a task, in the order of the predictions."""

    texts: tuple[str, ...]
    pairs: tuple[str | None, ...]
    labels: NDArray[np.float64]  # class indices or numbers
    names: tuple[str, ...]  # of the classes; empty if unknown


def path_of(preset: str, task: str) -> Path:
    """Return the path of the examples of a task."""
    return FOLDER / preset / "examples" / f"{task}.parquet"


def read(preset: str, tasks: Mapping[str, Mapping[str, Cell]]) -> tuple[dict[str, Examples], list[str]]:
    """Return the examples by task, and a note for each task whose examples are missing or not usable.

    Raises:
        UserError: if a file was not written by the arena.
    """
    found: dict[str, Examples] = {}
    lines = []
    for task, cells in tasks.items():
        path = path_of(preset, task)
        if not path.is_file():
            lines.append(f"{task}: no {path}, so no bootstrap and no disagreements")
            continue
        examples = _read(path, _names(task))
        if reason := _mismatch(examples.labels, cells.values()):
            lines.append(f"{task}: {path}: {reason}, so no bootstrap and no disagreements")
            continue
        found[task] = examples
    return found, lines


def has_numbers(metrics: Iterable[str]) -> bool:
    """Return whether a task with these metrics predicts numbers."""
    return any(metric in NUMBERS for metric in metrics)


def _mismatch(labels: NDArray[np.float64], cells: Iterable[Cell]) -> str:
    """Return why labels cannot be those that the trainings were scored with, or an empty text if they can."""
    for run in (run for cell in cells for run in cell.finished):
        if len(run.predicted) != len(labels):
            return f"{len(labels):,} examples, but {run.method} has {len(run.predicted):,} predictions"
        metric = run.metrics[0]
        if metric not in scores.EXAMPLES:
            return f"{metric} scores groups of examples"
        found = scores.score((metric,), np.array(run.predicted), labels)[metric]
        if abs(found - run.score()) > (OF_NUMBERS if has_numbers(run.metrics) else TOLERANCE):
            said = f"{metric} {found:.6g} with its labels, but {run.score():.6g} in the record"
            return f"{said} of {run.method}, seed {run.seed}"
    return ""


def _read(path: Path, names: tuple[str, ...]) -> Examples:
    try:
        table = pd.read_parquet(path)
        texts, labels = tuple(map(str, table["text"])), table["label"].to_numpy(dtype=np.float64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the examples of a task: {first_line(error)}; delete it") from None
    if not np.isfinite(labels).all():
        raise UserError(f"{path}: not the examples of a task: a label is not a finite number; delete it")
    seconds = table[PAIR] if PAIR in table else [None] * len(table)  # a task of single texts has none
    return Examples(texts, tuple(None if pd.isna(text) else str(text) for text in seconds), labels, names)


def _names(task: str) -> tuple[str, ...]:
    """Return the names of a task's classes, if its row still exists."""
    try:
        return params.load_row("data", task).names
    except UserError:
        return ()
