"""Read the labels of test splits that the arena writes next to its records, and bootstrap over test examples.

All training runs of a task are scored on the same resamples; see `pipeline.tasks.sums`.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.arena.record import Record
from pipeline.compare.rows import Cell, Cells
from pipeline.tasks import scores, sums
from pipeline.tasks.scores import Units
from pipeline.tasks.sums import METRICS, PEARSON
from pipeline.tasks.task import GROUP, TENANT, Groups

Values = NDArray[Any]
Labels: TypeAlias = pd.Series | pd.DataFrame  # one for each example, or a column for each of several that it may have
Parts = Mapping[str, Labels]  # the labels that are scored together, by name: of a task, or of each tenant
TOLERANCE = 2e-6  # rounding error of a score with six digits
OF_NUMBERS = 0.005  # tolerance for predictions that are numbers with six digits, perhaps nearly constant
AT_ONCE = 1000  # resamples in memory


def read(tasks: Cells) -> tuple[dict[str, Parts], list[str]]:
    """Return the labels by task and part, and a note for each task without labels, with errors of seeds alone."""
    usable = {}
    notes = []
    for task, methods in tasks.items():
        cells = list(methods.values())
        path = cells[0].labels
        trainings = select_finished(cells)
        if not path.is_file():
            if trainings:
                notes.append(_note(task, f"{path} is not there"))
            continue
        # Names of tenants may look like numbers or missing values.
        table = pd.read_csv(path, dtype={TENANT: str}, keep_default_na=False)
        parts = parts_of(task, table)
        mismatches = (_mismatch(parts, training) for training in trainings)
        mismatch = next(filter(None, mismatches), None)
        if mismatch:
            notes.append(_note(task, mismatch))
        else:
            usable[task] = parts
    return usable, notes


def select_finished(cells: Iterable[Cell]) -> list[Record]:
    """Return the training runs over which means are taken."""
    trainings = list[Record]()
    for cell in cells:
        trainings += cell.finished
    return trainings


def _note(task: str, reason: str) -> str:
    return f"{task}: {reason}, so its errors are of seeds alone"


def parts_of(task: str, table: pd.DataFrame) -> Parts:
    """Return the labels of a task's file by part: all, or one part per tenant.

    The index has the position of each example and, if examples are in groups, the number of the group.
    """
    if GROUP in table:
        table = table.set_index(GROUP, append=True)
    columns = table.drop(columns=TENANT, errors="ignore")
    labels = columns.astype(np.float64).squeeze("columns")
    if TENANT not in table:
        return {task: labels}
    parts = {}
    for name, part in labels.groupby(table[TENANT]):
        parts[f"{task}: {name}"] = part
    return parts


def get_predictions(training: Record, labels: Labels) -> Values:
    """Return the predictions of a training run for the examples of these labels, in the same shape."""
    shape = (-1, *labels.shape[1:])
    predicted = np.array(training.predicted).reshape(shape)
    return predicted[labels.index.get_level_values(0)]


def get_groups(labels: Labels) -> Groups:
    """Return the number of the group of each example; None if there are none."""
    if GROUP not in labels.index.names:
        return None
    return labels.index.get_level_values(GROUP).to_numpy()


def score(metric: str, training: Record, parts: Parts) -> float:
    """Return a metric of a training run on a task: the mean over its parts."""
    of_parts = []
    for labels in parts.values():
        predicted = get_predictions(training, labels)
        scored = scores.score((metric,), predicted, labels.to_numpy())
        of_parts.append(scored[metric])
    return fmean(of_parts)


def _mismatch(parts: Parts, training: Record) -> str:
    """Return why labels do not belong to a training run; empty if they can."""
    metric = training.metrics[0]
    if metric not in METRICS:
        return f"{metric} is no function of sums over examples"
    count = sum(labels.size for labels in parts.values())
    predictions = len(training.predicted)
    if predictions != count:
        return f"{count:,} labels, but {training.method} has {predictions:,} predictions"
    recorded = training.score()
    recomputed = score(metric, training, parts)
    tolerance = OF_NUMBERS if metric == PEARSON else TOLERANCE
    if abs(recomputed - recorded) > tolerance:
        in_record = f"{recorded:.6g} in the record of {training.method}"
        return f"{metric} {recomputed:.6g} of the labels, but {in_record}"
    return ""


def resample(
    task: str,
    metric: str,
    labels: Values,
    predicted: Sequence[Values],
    resamples: int,
    groups: Groups = None,
) -> Values:
    """Return one of METRICS on each resample of examples, or of whole groups: (training runs, resamples).

    `predicted` has the shape of `labels`: (n,), or for multi-label (n, labels) of 0 and 1. The draws of a task do not
    depend on other tasks.
    """
    columns = sums.columns_of(metric, labels, *predicted)
    if groups is not None:
        units = Units.of(np.column_stack(predicted), labels, groups)
        columns = np.add.reduceat(columns[units.order], units.first)
    rng = np.random.default_rng(zlib.crc32(task.encode()))
    count = len(columns)
    drawn = []
    for first in range(0, resamples, AT_ONCE):
        size = min(AT_ONCE, resamples - first)
        rows = rng.integers(count, size=(size, count))
        weights = sums.weights_of(rows, count)
        drawn.append(sums.scores_of(metric, weights, columns))
    return np.concatenate(drawn).T
