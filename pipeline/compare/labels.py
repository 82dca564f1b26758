"""The labels of the test splits, written by the arena next to its records, for the bootstrap over test examples."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.arena.record import Record, labels_path
from pipeline.compare.bootstrap import METRICS
from pipeline.compare.entries import Entry
from pipeline.tasks import scores
from pipeline.tasks.task import TENANT

Labels: TypeAlias = pd.Series | pd.DataFrame  # one for each example, or a column for each of several that it may have
Parts = Mapping[str, Labels]  # the labels that are scored together by name: those of a task, or of each tenant
TOLERANCE = 2e-6  # of a score with six digits
OF_NUMBERS = 0.005  # if predictions are numbers with six digits, perhaps nearly constant


def read(preset: str, tasks: Mapping[str, Mapping[str, Entry]]) -> tuple[dict[str, Parts], list[str]]:
    """Return the labels by task and part, and a note for each task whose errors are of seeds alone."""
    usable: dict[str, Parts] = {}
    notes = []
    for task, entries in tasks.items():
        paths = labels_path(preset, task), labels_path(preset, task, private=True)
        parts = next((_parts(task, pd.read_csv(path)) for path in paths if path.is_file()), None)
        if reason := _mismatch(parts, paths, entries.values()):
            notes.append(f"{task}: {reason}, so its errors are of seeds alone")
        elif parts is not None:
            usable[task] = parts
    return usable, notes


def _parts(task: str, table: pd.DataFrame) -> Parts:
    labels = table.drop(columns=TENANT, errors="ignore").astype(np.float64).squeeze("columns")
    if TENANT not in table:
        return {task: labels}
    return {f"{task}: {name}": its for name, its in labels.groupby(table[TENANT].map(str))}


def predicted_of(one: Record, labels: Labels) -> NDArray[np.float64]:
    """Return what a training predicted for the examples of these labels, in their shape."""
    return np.array(one.predicted).reshape(-1, *labels.shape[1:])[labels.index]


def score(metric: str, one: Record, parts: Parts) -> float:
    """Return a metric of what a training predicted for all labels of a task: the mean over its parts."""
    its = [scores.score((metric,), predicted_of(one, labels), labels.to_numpy()) for labels in parts.values()]
    return fmean(one[metric] for one in its)


def _mismatch(parts: Parts | None, paths: Sequence[Path], entries: Iterable[Entry]) -> str:
    """Return why labels cannot be those that the trainings were scored with, or an empty text if they can."""
    for one in (one for entry in entries for one in entry.finished):
        metric = one.metrics[0]
        if parts is None:
            return f"neither {paths[0]} nor {paths[1]} is there"
        if metric not in METRICS:
            return f"{metric} is no function of sums over examples"
        if len(one.predicted) != (count := sum(labels.size for labels in parts.values())):
            return f"{count:,} labels, but {one.method} has {len(one.predicted):,} predictions"
        recomputed = score(metric, one, parts)
        if abs(recomputed - one.score()) > (OF_NUMBERS if metric == "pearson" else TOLERANCE):
            return f"{metric} {recomputed:.6g} of the labels, but {one.score():.6g} in the record of {one.method}"
    return ""
