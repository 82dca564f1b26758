"""The labels of the test splits, written by the arena next to its records, and the bootstrap over test examples.

A bootstrap has scores on resamples of them, the same ones for all trainings of a task; see `pipeline.tasks.sums`.
"""

import zlib
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.arena.record import Record
from pipeline.compare.rows import Entry
from pipeline.tasks import scores, sums
from pipeline.tasks.sums import METRICS, PEARSON
from pipeline.tasks.task import TENANT

Values = NDArray[Any]
Labels: TypeAlias = pd.Series | pd.DataFrame  # one for each example, or a column for each of several that it may have
Parts = Mapping[str, Labels]  # the labels that are scored together by name: those of a task, or of each tenant
TOLERANCE = 2e-6  # of a score with six digits
OF_NUMBERS = 0.005  # if predictions are numbers with six digits, perhaps nearly constant
AT_ONCE = 1000  # resamples in memory


def read(tasks: Mapping[str, Mapping[str, Entry]]) -> tuple[dict[str, Parts], list[str]]:
    """Return the labels by task and part, and a note for each task whose errors are of seeds alone."""
    usable: dict[str, Parts] = {}
    notes = []
    for task, entries in tasks.items():
        path = next(iter(entries.values())).labels
        parts = _parts(task, pd.read_csv(path)) if path.is_file() else {}
        finished = (one for entry in entries.values() for one in entry.finished)
        reasons = (_mismatch(parts, one) if parts else f"{path} is not there" for one in finished)
        if reason := next(filter(None, reasons), ""):
            notes.append(f"{task}: {reason}, so its errors are of seeds alone")
        elif parts:
            usable[task] = parts
    return usable, notes


def _parts(task: str, table: pd.DataFrame) -> Parts:
    labels = table.drop(columns=TENANT, errors="ignore").astype(np.float64).squeeze("columns")
    if TENANT not in table:
        return {task: labels}
    return {f"{task}: {name}": its for name, its in labels.groupby(table[TENANT].map(str))}


def predicted_of(one: Record, labels: Labels) -> Values:
    """Return what a training predicted for the examples of these labels, in their shape."""
    return np.array(one.predicted).reshape(-1, *labels.shape[1:])[labels.index]


def score(metric: str, one: Record, parts: Parts) -> float:
    """Return a metric of what a training predicted for all labels of a task: the mean over its parts."""
    its = [scores.score((metric,), predicted_of(one, labels), labels.to_numpy()) for labels in parts.values()]
    return fmean(one[metric] for one in its)


def _mismatch(parts: Parts, one: Record) -> str:
    """Return why labels cannot be those that a training was scored with, or an empty text if they can."""
    metric = one.metrics[0]
    if metric not in METRICS:
        return f"{metric} is no function of sums over examples"
    if len(one.predicted) != (count := sum(labels.size for labels in parts.values())):
        return f"{count:,} labels, but {one.method} has {len(one.predicted):,} predictions"
    recomputed = score(metric, one, parts)
    if abs(recomputed - one.score()) > (OF_NUMBERS if metric == PEARSON else TOLERANCE):
        return f"{metric} {recomputed:.6g} of the labels, but {one.score():.6g} in the record of {one.method}"
    return ""


def resampled(task: str, metric: str, labels: Values, predicted: Sequence[Values], resamples: int) -> Values:
    """Return one of METRICS of each training on each resample, (trainings, resamples).

    `predicted` are as `labels`: (n,), or of several labels that an example may have, (n, labels) of 0 and 1. Each task
    has its own draws, which do not depend on other tasks.
    """
    columns = sums.columns_of(metric, labels, *predicted)
    rng, drawn = np.random.default_rng(zlib.crc32(task.encode())), []
    for first in range(0, resamples, AT_ONCE):
        rows = rng.integers(len(labels), size=(min(AT_ONCE, resamples - first), len(labels)))
        drawn.append(sums.scores_of(metric, sums.weights_of(rows, len(labels)), columns))
    return np.concatenate(drawn).T
