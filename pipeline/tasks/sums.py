"""Metrics as functions of a few sums over examples, of many resamples at once.

All metrics but rank correlations are such functions. A resample weights the examples, so the sums for many resamples,
and for many predictions, are one matrix product, instead of a million calls of scikit-learn.
"""

from collections.abc import Callable

import numpy as np

from pipeline.tasks.task import Numbers

ROUNDING = 1e-12  # numbers that differ by less than this share of the largest count as equal
PEARSON, MOMENTS = "pearson", 6


def columns_of(metric: str, labels: Numbers, *predicted: Numbers) -> Numbers:  # (n, predictions, ..., terms)
    """Return what is summed over examples for each of some predictions.

    Labels and predictions are (n,), or (n, labels) of 0 and 1.
    """
    terms, _ = METRICS[metric]
    classes = _classes_of(metric, labels, *predicted)
    return np.stack([terms(labels, one, classes) for one in predicted], axis=1)


def size_of(metric: str, labels: Numbers, predicted: Numbers) -> int:
    """Return how many numbers `columns_of` has for one of the predictions."""
    if metric not in OF_CLASSES:
        return MOMENTS * len(labels)
    width = labels.shape[1] if labels.ndim == 2 else len(_classes_of(metric, labels, predicted))
    return 3 * width * len(labels)


def _classes_of(metric: str, *values: Numbers) -> Numbers:
    """Return all classes up to the largest that occurs; none for a metric of numbers."""
    return np.arange(1 + int(max(1, *(numbers.max() for numbers in values))) if metric in OF_CLASSES else 0)


def weights_of(drawn: Numbers, count: int) -> Numbers:  # (resamples, count)
    """Return how often each of `count` units is in each resample, whose numbers are (resamples, count)."""
    first = count * np.arange(len(drawn))[:, None]
    return np.bincount((drawn + first).ravel(), minlength=drawn.size).reshape(-1, count).astype(np.float64)


def scores_of(metric: str, weights: Numbers, columns: Numbers) -> Numbers:  # (resamples, ...)
    """Return a metric on resamples: of how often each unit is in them, and what is summed of each unit."""
    _, scored = METRICS[metric]
    return scored(*np.moveaxis(np.tensordot(weights, columns, axes=1), -1, 0))


def _counts(labels: Numbers, predicted: Numbers, classes: Numbers) -> Numbers:
    """Return for each example and class or label whether it is a hit, the label, the prediction: (n, classes, 3)."""
    actual, taken = (its > 0 if its.ndim == 2 else its[:, None] == classes for its in (labels, predicted))
    return np.stack([actual & taken, actual, taken], axis=2).astype(np.float64)


def _f1(hits: Numbers, actual: Numbers, taken: Numbers) -> Numbers:
    return 2 * hits / np.maximum(actual + taken, 1)  # 0 of a class that does not occur


def _matthews(hits: Numbers, actual: Numbers, taken: Numbers) -> Numbers:
    total = actual.sum(-1)
    shared = hits.sum(-1) * total - (actual * taken).sum(-1)
    spread = (total**2 - (actual**2).sum(-1)) * (total**2 - (taken**2).sum(-1))
    return np.where(spread > 0, shared / np.sqrt(np.maximum(spread, 1)), 0.0)


def _with_count(_labels: Numbers, predicted: Numbers, _classes: Numbers) -> Numbers:
    return np.stack([np.ones(len(predicted)), predicted], axis=1)


def _moments(labels: Numbers, predicted: Numbers, _classes: Numbers) -> Numbers:
    x, y = labels - labels.mean(), predicted - predicted.mean()
    return np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)


def _pearson(count: Numbers, x: Numbers, y: Numbers, xx: Numbers, yy: Numbers, xy: Numbers) -> Numbers:
    spread = np.maximum(count * xx - x * x, 0) * np.maximum(count * yy - y * y, 0)
    varies = spread > (ROUNDING * count * count * np.maximum(xx, yy)) ** 2
    return np.where(varies, (count * xy - x * y) / np.sqrt(np.where(varies, spread, 1)), 0.0)


Terms = Callable[[Numbers, Numbers, Numbers], Numbers]
OF_CLASSES: dict[str, Terms] = {  # of hits, labels and predictions, (..., classes)
    "accuracy": lambda hits, actual, taken: hits.sum(-1) / actual.sum(-1),
    "f1": lambda hits, actual, taken: _f1(hits, actual, taken)[..., 1],
    "micro_f1": lambda hits, actual, taken: _f1(hits.sum(-1), actual.sum(-1), taken.sum(-1)),
    "macro_f1": lambda hits, actual, taken: _f1(hits, actual, taken).sum(-1) / (actual + taken > 0).sum(-1).clip(min=1),
    "matthews_correlation": _matthews,
}
# What is summed over examples, of labels, predictions and classes; and what makes a score of the sums.
METRICS: dict[str, tuple[Terms, Callable[..., Numbers]]] = {
    **{name: (_counts, score) for name, score in OF_CLASSES.items()},
    # What is known of each text by itself.
    **dict.fromkeys(("exact_match", "rouge_l"), (_with_count, lambda count, total: total / count)),
    PEARSON: (_moments, _pearson),
}
