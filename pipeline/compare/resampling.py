"""The paired bootstrap: scores on resamples of the test split, the same ones for all trainings on a task.

All metrics except rank correlations are functions of a few sums over examples. A resample weights the examples, so the
sums for all resamples and trainings are one matrix product, instead of a million calls of scikit-learn.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.scores import EXAMPLES, ROUNDING

Values = NDArray[Any]
WEIGHTS_AT_ONCE = 4_000_000  # numbers in memory
COLUMNS_AT_ONCE = 20_000_000


class Sums(NamedTuple):
    """A metric as a function of sums over examples."""

    columns: Callable[[Values, Values, int], Values]  # labels (n,), predicted (n,), classes -> (n, columns)
    score: Callable[[Values], Values]  # sums (..., columns) -> (...)


def scores(metric: str, labels: Values, predicted: Sequence[Values], resamples: int, seed: int) -> Values:
    """Return the metric of each training on each resample, (trainings, resamples); `predicted` are (examples,) each.

    Every resample draws as many examples as there are, with replacement.

    Raises:
        ValueError: if the metric does not score single examples.
    """
    if metric not in EXAMPLES:
        raise ValueError(f"metric must be one of {list(EXAMPLES)}, got {metric}")
    found = np.empty((len(predicted), resamples))
    rng = np.random.default_rng(seed)
    done = 0
    for drawn in _batches(rng, len(labels), resamples):
        place = slice(done, done := done + len(drawn))
        if metric in SUMS:
            found[:, place] = _from_sums(SUMS[metric], labels, predicted, drawn)
        else:
            found[:, place] = [[EXAMPLES[metric](labels[rows], one[rows]) for rows in drawn] for one in predicted]
    return found


def p_value(differences: Values) -> float:
    """Return the two-sided p-value of a difference from its resamples, (resamples,); it is never 0."""
    sides = [int((differences <= 0).sum()), int((differences >= 0).sum())]
    return min(1.0, 2 * (1 + min(sides)) / (1 + len(differences)))


def _batches(rng: np.random.Generator, examples: int, resamples: int) -> Iterator[Values]:
    size = max(1, WEIGHTS_AT_ONCE // examples)
    for start in range(0, resamples, size):
        yield rng.integers(examples, size=(min(size, resamples - start), examples))


def _from_sums(sums: Sums, labels: Values, predicted: Sequence[Values], drawn: Values) -> Values:
    weights = np.stack([np.bincount(rows, minlength=len(labels)) for rows in drawn]).astype(np.float64)
    classes = 1 + int(max(1, labels.max(), *(one.max() for one in predicted)))
    found = []
    for start, stop in _blocks(len(predicted), len(labels)):
        columns = [sums.columns(labels, one, classes) for one in predicted[start:stop]]
        products = weights @ np.concatenate(columns, axis=1)
        found.append(sums.score(products.reshape(len(drawn), stop - start, -1)).T)
    return np.concatenate(found)


def _blocks(runs: int, examples: int) -> Iterator[tuple[int, int]]:
    size = max(1, COLUMNS_AT_ONCE // (8 * examples))
    for start in range(0, runs, size):
        yield start, min(start + size, runs)


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
    found, there = _f1_of_classes(sums)
    return found.sum(-1) / there.sum(-1)


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
