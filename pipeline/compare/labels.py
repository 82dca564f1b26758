"""The labels of the test splits, written by the arena next to its records, for the bootstrap over test examples."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.arena.record import labels_path
from pipeline.compare.bootstrap import METRICS
from pipeline.compare.entries import Entry
from pipeline.tasks import scores

TOLERANCE = 2e-6  # of a score with six digits
OF_NUMBERS = 0.005  # if predictions are numbers with six digits, perhaps nearly constant


def read(preset: str, tasks: Mapping[str, Mapping[str, Entry]]) -> tuple[dict[str, NDArray[np.float64]], list[str]]:
    """Return the labels by task, and a note for each task whose errors are of seeds alone."""
    usable: dict[str, NDArray[np.float64]] = {}
    notes = []
    for task, entries in tasks.items():
        paths = labels_path(preset, task), labels_path(preset, task, private=True)
        labels = next((pd.read_csv(path)["label"].to_numpy(np.float64) for path in paths if path.is_file()), None)
        if reason := _mismatch(labels, paths, entries.values()):
            notes.append(f"{task}: {reason}, so its errors are of seeds alone")
        elif labels is not None:
            usable[task] = labels
    return usable, notes


def _mismatch(labels: NDArray[np.float64] | None, paths: Sequence[Path], entries: Iterable[Entry]) -> str:
    """Return why labels cannot be those that the trainings were scored with, or an empty text if they can."""
    for one in (one for entry in entries for one in entry.finished):
        metric = one.metrics[0]
        if labels is None:
            return f"neither {paths[0]} nor {paths[1]} is there"
        if metric not in METRICS:
            return f"{metric} is no function of sums over examples"
        if len(one.predicted) != len(labels):
            return f"{len(labels):,} labels, but {one.method} has {len(one.predicted):,} predictions"
        recomputed = scores.score((metric,), np.array(one.predicted), labels)[metric]
        if abs(recomputed - one.score()) > (OF_NUMBERS if metric == "pearson" else TOLERANCE):
            return f"{metric} {recomputed:.6g} of the labels, but {one.score():.6g} in the record of {one.method}"
    return ""
