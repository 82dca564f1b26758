"""The labels of the test splits, written by the arena next to its records, and the bootstrap over test examples.

A bootstrap has scores on resamples of them, the same ones for all trainings of a task. All metrics but rank
correlations are functions of a few sums over examples. A resample weights the examples, so the sums for all trainings
and resamples are one matrix product, instead of a million calls of scikit-learn.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.arena.record import Record
from pipeline.compare.rows import Entry
from pipeline.tasks import scores
from pipeline.tasks.scores import ROUNDING
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
    terms, scored = METRICS[metric]
    classes = np.arange(1 + int(max(1, labels.max(), *(one.max() for one in predicted))))
    columns = np.stack([terms(labels, one, classes) for one in predicted], axis=1)  # (n, trainings, ..., terms)
    rng, drawn = np.random.default_rng(zlib.crc32(task.encode())), []
    for first in range(0, resamples, AT_ONCE):
        rows = rng.integers(len(labels), size=(min(AT_ONCE, resamples - first), len(labels)))
        weights = np.stack([np.bincount(row, minlength=len(labels)) for row in rows]).astype(np.float64)
        drawn.append(scored(*np.moveaxis(np.tensordot(weights, columns, axes=1), -1, 0)))
    return np.concatenate(drawn).T


def _counts(labels: Values, predicted: Values, classes: Values) -> Values:
    """Return for each example and class or label whether it is a hit, the label, the prediction: (n, classes, 3)."""
    actual, taken = (its > 0 if its.ndim == 2 else its[:, None] == classes for its in (labels, predicted))
    return np.stack([actual & taken, actual, taken], axis=2).astype(np.float64)


def _f1(hits: Values, actual: Values, taken: Values) -> Values:
    return 2 * hits / np.maximum(actual + taken, 1)  # 0 of a class that does not occur


def _matthews(hits: Values, actual: Values, taken: Values) -> Values:
    total = actual.sum(-1)
    shared = hits.sum(-1) * total - (actual * taken).sum(-1)
    spread = (total**2 - (actual**2).sum(-1)) * (total**2 - (taken**2).sum(-1))
    return np.where(spread > 0, shared / np.sqrt(np.maximum(spread, 1)), 0.0)


def _with_count(_labels: Values, predicted: Values, _classes: Values) -> Values:
    return np.stack([np.ones(len(predicted)), predicted], axis=1)


def _moments(labels: Values, predicted: Values, _classes: Values) -> Values:
    x, y = labels - labels.mean(), predicted - predicted.mean()
    return np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)


def _pearson(count: Values, x: Values, y: Values, xx: Values, yy: Values, xy: Values) -> Values:
    spread = np.maximum(count * xx - x * x, 0) * np.maximum(count * yy - y * y, 0)
    varies = spread > (ROUNDING * count * count * np.maximum(xx, yy)) ** 2
    return np.where(varies, (count * xy - x * y) / np.sqrt(np.where(varies, spread, 1)), 0.0)


PEARSON = "pearson"
OF_CLASSES: dict[str, Callable[[Values, Values, Values], Values]] = {  # hits, labels and predictions, (..., classes)
    "accuracy": lambda hits, actual, taken: hits.sum(-1) / actual.sum(-1),
    "f1": lambda hits, actual, taken: _f1(hits, actual, taken)[..., 1],
    "micro_f1": lambda hits, actual, taken: _f1(hits.sum(-1), actual.sum(-1), taken.sum(-1)),
    "macro_f1": lambda hits, actual, taken: _f1(hits, actual, taken).sum(-1) / (actual + taken > 0).sum(-1).clip(min=1),
    "matthews_correlation": _matthews,
}
# What is summed over examples, of labels, predictions and classes; and what makes a score of the sums.
METRICS: dict[str, tuple[Callable[[Values, Values, Values], Values], Callable[..., Values]]] = {
    **{name: (_counts, score) for name, score in OF_CLASSES.items()},
    # What is known of each text by itself.
    **dict.fromkeys(("exact_match", "rouge_l"), (_with_count, lambda count, total: total / count)),
    PEARSON: (_moments, _pearson),
}
