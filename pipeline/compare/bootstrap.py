"""The bootstrap over test examples: scores on resamples of them, the same ones for all trainings of a task.

All metrics but rank correlations are functions of a few sums over examples. A resample weights the examples, so the
sums for all trainings and resamples are one matrix product, instead of a million calls of scikit-learn.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.tasks.scores import ROUNDING

Values = NDArray[Any]
AT_ONCE = 1000  # resamples in memory


class Sums(NamedTuple):
    """A metric as a function of sums over examples."""

    columns: Callable[[Values, Values, int], Values]  # labels (n,), predicted (n,), classes -> (n, columns)
    score: Callable[[Values], Values]  # sums (..., columns) -> (...)


def scores(task: str, metric: str, labels: Values, predicted: Sequence[Values], resamples: int) -> Values:
    """Return a metric of SUMS of each training on each resample, (trainings, resamples); `predicted` are (n,) each.

    Each task has its own draws, which do not depend on other tasks.
    """
    sums = SUMS[metric]
    classes = 1 + int(max(1, labels.max(), *(one.max() for one in predicted)))
    columns = np.concatenate([sums.columns(labels, one, classes) for one in predicted], axis=1)

    rng, drawn = np.random.default_rng(zlib.crc32(task.encode())), []
    for first in range(0, resamples, AT_ONCE):
        rows = rng.integers(len(labels), size=(min(AT_ONCE, resamples - first), len(labels)))
        weights = np.stack([np.bincount(row, minlength=len(labels)) for row in rows]).astype(np.float64)
        drawn.append(sums.score((weights @ columns).reshape(len(rows), len(predicted), -1)))
    return np.concatenate(drawn).T


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
