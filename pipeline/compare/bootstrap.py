"""The paired bootstrap: leads over the baseline on resamples of the test examples, the same ones for all trainings.

All metrics but rank correlations are functions of a few sums over examples. A resample weights the examples, so the
sums for all trainings and resamples are one matrix product, instead of a million calls of scikit-learn.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipeline.compare.cells import Cell
from pipeline.evaluation.scores import ROUNDING

Values = NDArray[Any]
Leads = dict[str, Values]  # by method: its lead over the baseline on each resample, (resamples,), a fraction
WEIGHTS_AT_ONCE = 4_000_000  # numbers in memory


class Sums(NamedTuple):
    """A metric as a function of sums over examples."""

    columns: Callable[[Values, Values, int], Values]  # labels (n,), predicted (n,), classes -> (n, columns)
    score: Callable[[Values], Values]  # sums (..., columns) -> (...)


def leads(cells: Mapping[str, Cell], baseline: str, labels: Values, resamples: int) -> Leads:
    """Return the lead of each method of a task over the baseline on each resample, the mean over the seeds in common.

    Methods without a common seed are left out.
    """
    runs = [run for cell in cells.values() for run in cell.finished]
    if baseline not in cells or not cells[baseline].finished:
        return {}
    seed = zlib.crc32(runs[0].task.encode())  # each task has its own, so that its draws do not depend on other tasks
    drawn = scores(runs[0].metrics[0], labels, [np.array(run.predicted) for run in runs], resamples, seed)
    by_run = {(run.method, run.seed): row for run, row in zip(runs, drawn, strict=True)}
    listed: Leads = {}
    for method, cell in cells.items():
        shared = [run.seed for run in cell.finished if (baseline, run.seed) in by_run]
        if method != baseline and shared:
            listed[method] = np.mean([by_run[method, seed] - by_run[baseline, seed] for seed in shared], axis=0)
    return listed


def over_tasks(tasks: Sequence[Leads]) -> Leads:
    """Return the lead on each resample, averaged over tasks, for the methods that all tasks have."""
    shared = set.intersection(*map(set, tasks)) if tasks else set()
    return {method: np.mean([task[method] for task in tasks], axis=0) for method in sorted(shared)}


def p_value(differences: Values) -> float:
    """Return the two-sided p-value of a difference from its resamples, (resamples,); it is never 0."""
    sides = [int((differences <= 0).sum()), int((differences >= 0).sum())]
    return min(1.0, 2 * (1 + min(sides)) / (1 + len(differences)))


def scores(metric: str, labels: Values, predicted: Sequence[Values], resamples: int, seed: int) -> Values:
    """Return a metric of SUMS of each training on each resample, (trainings, resamples); `predicted` are (n,) each."""
    sums = SUMS[metric]
    classes = 1 + int(max(1, labels.max(), *(one.max() for one in predicted)))
    columns = np.concatenate([sums.columns(labels, one, classes) for one in predicted], axis=1)

    def statistic(rows: Values, axis: int) -> Values:  # (batch, n) or (n,) -> (trainings, batch) or (trainings,)
        weights = np.apply_along_axis(np.bincount, axis, rows, minlength=len(labels)).astype(np.float64)
        by_resample: Values = sums.score((weights @ columns).reshape(*rows.shape[:-1], len(predicted), -1))
        return np.moveaxis(by_resample, -1, 0)

    drawn = stats.bootstrap(
        (np.arange(len(labels)),),
        statistic,
        n_resamples=resamples,
        batch=max(1, WEIGHTS_AT_ONCE // len(labels)),
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return drawn.bootstrap_distribution


def _counts(labels: Values, predicted: Values, classes: int) -> Values:
    """Return for each example and class whether it is a hit, the label, the prediction: (n, 3 * classes)."""
    numbers = np.arange(classes)
    actual, taken = labels[:, None] == numbers, predicted[:, None] == numbers
    return np.stack([actual & taken, actual, taken], axis=2).reshape(len(labels), -1).astype(np.float64)


def _of_classes(sums: Values) -> tuple[Values, Values, Values]:
    """Return hits, labels and predictions, (..., classes) each."""
    counts = sums.reshape(*sums.shape[:-1], -1, 3)
    return counts[..., 0], counts[..., 1], counts[..., 2]


def _accuracy(sums: Values) -> Values:
    hits, actual, _ = _of_classes(sums)
    return hits.sum(-1) / actual.sum(-1)


def _f1_of_classes(sums: Values) -> tuple[Values, Values]:
    """Return the F1 of each class, 0 if the class does not occur, and whether it occurs."""
    hits, actual, taken = _of_classes(sums)
    return 2 * hits / np.maximum(actual + taken, 1), actual + taken > 0


def _macro_f1(sums: Values) -> Values:
    by_class, occurs = _f1_of_classes(sums)
    return by_class.sum(-1) / occurs.sum(-1)


def _matthews(sums: Values) -> Values:
    hits, actual, taken = _of_classes(sums)
    total = actual.sum(-1)
    shared = hits.sum(-1) * total - (actual * taken).sum(-1)
    spread = (total**2 - (actual**2).sum(-1)) * (total**2 - (taken**2).sum(-1))
    return np.where(spread > 0, shared / np.sqrt(np.maximum(spread, 1)), 0.0)


def _moments(labels: Values, predicted: Values, _: int) -> Values:
    x, y = labels - labels.mean(), predicted - predicted.mean()
    return np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)


def _pearson(sums: Values) -> Values:
    count, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    spread = np.maximum(count * xx - x * x, 0) * np.maximum(count * yy - y * y, 0)
    varies = spread > (ROUNDING * count * count * np.maximum(xx, yy)) ** 2
    return np.where(varies, (count * xy - x * y) / np.sqrt(np.where(varies, spread, 1)), 0.0)


SUMS = {
    "accuracy": Sums(_counts, _accuracy),
    "f1": Sums(_counts, lambda sums: _f1_of_classes(sums)[0][..., 1]),
    "macro_f1": Sums(_counts, _macro_f1),
    "matthews_correlation": Sums(_counts, _matthews),
    "pearson": Sums(_moments, _pearson),
}
