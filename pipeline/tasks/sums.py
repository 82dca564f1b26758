"""Metrics as functions of a few sums over examples, of many resamples at once.

All metrics but rank correlations are such functions. A resample weights the examples, so the sums for many resamples,
and for many predictions, are one matrix product, instead of a million calls of scikit-learn.
"""

from collections.abc import Callable

import numpy as np

from pipeline.tasks.task import Numbers

ROUNDING = 1e-12  # numbers that differ by less than this share of the largest count as equal
PEARSON = "pearson"
MOMENTS = 6  # the terms of it


def columns_of(metric: str, labels: Numbers, *predicted: Numbers) -> Numbers:  # (n, predictions, ..., terms)
    """Return what is summed over examples for each of some predictions.

    Labels and predictions are (n,), or (n, labels) of 0 and 1.
    """
    terms, _ = METRICS[metric]
    classes = _classes_of(metric, labels, *predicted)
    columns = [terms(labels, predictions, classes) for predictions in predicted]
    return np.stack(columns, axis=1)


def size_of(metric: str, labels: Numbers, predicted: Numbers) -> int:
    """Return how many numbers `columns_of` has for one of the predictions."""
    if metric not in OF_CLASSES:
        return MOMENTS * len(labels)
    if labels.ndim == 2:
        return 3 * labels.size
    classes = _classes_of(metric, labels, predicted)
    return 3 * len(classes) * len(labels)


def _classes_of(metric: str, *values: Numbers) -> Numbers:
    """Return all classes up to the largest that occurs; none for a metric of numbers."""
    if metric not in OF_CLASSES:
        return np.arange(0)
    largest = max(numbers.max() for numbers in values)
    return np.arange(1 + max(1, int(largest)))


def weights_of(drawn: Numbers, count: int) -> Numbers:  # (resamples, count)
    """Return how often each of `count` units is in each resample, whose numbers are (resamples, count)."""
    first = count * np.arange(len(drawn))[:, None]
    numbers = (drawn + first).ravel()
    times = np.bincount(numbers, minlength=drawn.size)
    return times.reshape(-1, count).astype(np.float64)


def scores_of(metric: str, weights: Numbers, columns: Numbers) -> Numbers:  # (resamples, ...)
    """Return a metric on resamples: of how often each unit is in them, and what is summed of each unit."""
    _, scored = METRICS[metric]
    totals = np.tensordot(weights, columns, axes=1)
    return scored(*np.moveaxis(totals, -1, 0))


def _counts(labels: Numbers, predicted: Numbers, classes: Numbers) -> Numbers:
    """Return for each example and class or label whether it is a hit, the label, the prediction: (n, classes, 3)."""
    actual = _flags(labels, classes)
    taken = _flags(predicted, classes)
    return np.stack([actual & taken, actual, taken], axis=2).astype(np.float64)


def _flags(values: Numbers, classes: Numbers) -> Numbers:  # (n, classes)
    return values > 0 if values.ndim == 2 else values[:, None] == classes


def f1(hits: Numbers, actual: Numbers, taken: Numbers) -> Numbers:
    """Return the F1 of classes or labels by their counts; 0 of one that does not occur."""
    return 2 * hits / np.maximum(actual + taken, 1)


def _macro_f1(hits: Numbers, actual: Numbers, taken: Numbers) -> Numbers:
    occurring = (actual + taken > 0).sum(-1)
    return f1(hits, actual, taken).sum(-1) / occurring.clip(min=1)


def _matthews(hits: Numbers, actual: Numbers, taken: Numbers) -> Numbers:
    total = actual.sum(-1)
    shared = hits.sum(-1) * total - (actual * taken).sum(-1)
    actual_spread = total**2 - (actual**2).sum(-1)
    taken_spread = total**2 - (taken**2).sum(-1)
    spread = actual_spread * taken_spread
    return correlation(shared, spread, spread > 0)


def _with_count(_labels: Numbers, predicted: Numbers, _classes: Numbers) -> Numbers:
    return np.stack([np.ones(len(predicted)), predicted], axis=1)


def _moments(labels: Numbers, predicted: Numbers, _classes: Numbers) -> Numbers:
    x = labels - labels.mean()
    y = predicted - predicted.mean()
    terms = [np.ones(len(x)), x, y, x * x, y * y, x * y]
    return np.stack(terms, axis=1)


def _pearson(count: Numbers, x: Numbers, y: Numbers, xx: Numbers, yy: Numbers, xy: Numbers) -> Numbers:
    x_spread = np.maximum(count * xx - x * x, 0)
    y_spread = np.maximum(count * yy - y * y, 0)
    spread = x_spread * y_spread
    varies = spread > (ROUNDING * count * count * np.maximum(xx, yy)) ** 2
    return correlation(count * xy - x * y, spread, varies)


def correlation(shared: Numbers, spread: Numbers, varies: Numbers) -> Numbers:
    """Return covariances over roots of products of variances; 0 where one of these does not vary."""
    return np.where(varies, shared / np.sqrt(np.where(varies, spread, 1)), 0.0)


Terms = Callable[[Numbers, Numbers, Numbers], Numbers]
OF_CLASSES: dict[str, Terms] = {  # of hits, labels and predictions, (..., classes)
    "accuracy": lambda hits, actual, taken: hits.sum(-1) / actual.sum(-1),
    "f1": lambda hits, actual, taken: f1(hits, actual, taken)[..., 1],
    "micro_f1": lambda *counts: f1(*(count.sum(-1) for count in counts)),
    "macro_f1": _macro_f1,
    "matthews_correlation": _matthews,
}
# What is summed over examples, of labels, predictions and classes; and what makes a score of the sums.
METRICS: dict[str, tuple[Terms, Callable[..., Numbers]]] = {
    **{name: (_counts, score) for name, score in OF_CLASSES.items()},
    # What is known of each text by itself.
    **dict.fromkeys(("exact_match", "rouge_l"), (_with_count, lambda count, total: total / count)),
    PEARSON: (_moments, _pearson),
}
