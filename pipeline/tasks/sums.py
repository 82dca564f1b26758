"""Compute metrics of many resamples at once, as functions of a few sums over examples.

All metrics except rank correlations are such functions. A resample is a weighting of the examples, so the sums for many
resamples and predictions are one matrix product instead of a million calls of scikit-learn.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pipeline.tasks.task import Numbers

ROUNDING = 1e-12  # numbers that differ by less than this share of the largest count as equal
PEARSON = "pearson"
MOMENTS = 6  # the terms of it
ECE = "ece"
BINS = 15  # bins of equal width for probabilities


def columns_of(metric: str, labels: Numbers, *predicted: Numbers) -> Numbers:  # (n, predictions, ..., terms)
    """Return the columns to sum over examples, for each of several predictions.

    Labels and predictions are (n,), or (n, labels) of 0 and 1.
    """
    terms_of = METRICS[metric].terms
    classes = _classes_of(metric, labels, *predicted)
    columns = list[Numbers]()
    for predictions in predicted:
        terms = terms_of(labels, predictions, classes)
        columns.append(terms)
    return np.stack(columns, axis=1)


def size_of(metric: str, labels: Numbers, predicted: Numbers) -> int:
    """Return the number of columns of `columns_of` per prediction."""
    if metric == ECE:
        return (BINS + 1) * len(labels)
    if metric not in OF_CLASSES:
        return MOMENTS * len(labels)
    if labels.ndim == 2:
        return 3 * labels.size
    classes = _classes_of(metric, labels, predicted)
    return 3 * len(classes) * len(labels)


def _classes_of(metric: str, *values: Numbers) -> Numbers:
    """Return all classes up to the largest that occurs; empty for metrics of numbers."""
    if metric not in OF_CLASSES:
        return np.arange(0)
    maxima = [numbers.max() for numbers in values]
    largest = max(maxima)
    count = max(2, 1 + int(largest))
    return np.arange(count)


def weights_of(drawn: Numbers, count: int) -> Numbers:  # (resamples, count)
    """Return how often each of `count` units is in each resample, whose numbers are (resamples, count)."""
    resamples = np.arange(len(drawn))
    column = resamples[:, None]
    first = count * column
    numbers = (drawn + first).ravel()
    times = np.bincount(numbers, minlength=drawn.size)
    by_resample = times.reshape(-1, count)
    return by_resample.astype(np.float64)


def scores_of(metric: str, weights: Numbers, columns: Numbers) -> Numbers:  # (resamples, ...)
    """Return a metric on resamples, from the weights of units in each resample and the sums of each unit."""
    totals = np.tensordot(weights, columns, axes=1)
    terms = np.moveaxis(totals, -1, 0)
    return METRICS[metric].score(terms)


def _counts(labels: Numbers, predicted: Numbers, classes: Numbers) -> Numbers:
    """Return for each example and class or label whether it is a hit, the label, the prediction: (n, classes, 3)."""
    actual = _flags(labels, classes)
    taken = _flags(predicted, classes)
    hits = actual & taken
    flags = np.stack([hits, actual, taken], axis=2)
    return flags.astype(np.float64)


def _flags(values: Numbers, classes: Numbers) -> Numbers:  # (n, classes)
    if values.ndim == 2:
        return values > 0
    return values[:, None] == classes


def f1(hits: Numbers, actual: Numbers, taken: Numbers) -> Numbers:
    """Return the F1 of classes or labels by their counts; 0 for one that does not occur."""
    either = np.maximum(actual + taken, 1)
    return 2 * hits / either


# Scores by the counts of classes, (3, ..., classes): hits, labels and predictions.


def _accuracy(counts: Numbers) -> Numbers:
    hits, actual, _ = counts
    return hits.sum(-1) / actual.sum(-1)


def _f1_of_positive(counts: Numbers) -> Numbers:
    of_classes = f1(*counts)
    return of_classes[..., 1]


def _micro_f1(counts: Numbers) -> Numbers:
    totals = [count.sum(-1) for count in counts]
    return f1(*totals)


def _macro_f1(counts: Numbers) -> Numbers:
    _, actual, taken = counts
    occurs = actual + taken > 0
    occurring = occurs.sum(-1)
    total = f1(*counts).sum(-1)
    return total / occurring.clip(min=1)


def _matthews(counts: Numbers) -> Numbers:
    hits, actual, taken = counts
    total = actual.sum(-1)
    products = actual * taken
    by_chance = products.sum(-1)
    right = hits.sum(-1)
    shared = right * total - by_chance
    actual_spread = _spread(actual, total)
    taken_spread = _spread(taken, total)
    spread = actual_spread * taken_spread
    return correlation(shared, spread, spread > 0)


def _spread(counts: Numbers, total: Numbers) -> Numbers:
    squares = counts**2
    return total**2 - squares.sum(-1)


def _with_count(_labels: Numbers, predicted: Numbers, _classes: Numbers) -> Numbers:
    ones = np.ones(len(predicted))
    return np.stack([ones, predicted], axis=1)


def _mean(terms: Numbers) -> Numbers:
    count, total = terms
    return total / count


def _distances(labels: Numbers, predicted: Numbers, _classes: Numbers) -> Numbers:
    distances = np.abs(predicted - labels)
    return _with_count(labels, distances, _classes)


def _squares(labels: Numbers, predicted: Numbers, _classes: Numbers) -> Numbers:
    differences = predicted - labels
    return _with_count(labels, differences**2, _classes)


def _root_of_mean(terms: Numbers) -> Numbers:
    return np.sqrt(_mean(terms))


def _moments(labels: Numbers, predicted: Numbers, _classes: Numbers) -> Numbers:
    x = _center(labels)
    y = _center(predicted)
    ones = np.ones(len(x))
    squares = [x * x, y * y, x * y]
    return np.stack([ones, x, y, *squares], axis=1)


def _center(values: Numbers) -> Numbers:
    """Return the differences from the mean; 0 if all of them are rounding errors."""
    if np.ptp(values) <= ROUNDING * np.abs(values).max():
        return np.zeros(len(values))
    return values - values.mean()


def _pearson(moments: Numbers) -> Numbers:
    count, x, y, xx, yy, xy = moments
    x_scaled = count * xx - x * x
    y_scaled = count * yy - y * y
    # Each is compared with its own size, as labels and predictions may have other units.
    rounding = ROUNDING * count * count
    x_varies = x_scaled > rounding * xx
    y_varies = y_scaled > rounding * yy
    varies = x_varies & y_varies
    spread = x_scaled * y_scaled
    shared = count * xy - x * y
    return correlation(shared, spread, varies)


def bins_of(probabilities: Numbers) -> Numbers:
    """Return the number of the bin that each probability is in."""
    numbers = (probabilities * BINS).astype(np.int64)
    return numbers.clip(max=BINS - 1)


def _gaps(labels: Numbers, predicted: Numbers, _classes: Numbers) -> Numbers:
    """Return by how much frequency exceeds probability in each bin, and the number of answers: (n, BINS + 1)."""
    count = len(labels)
    differences = labels - predicted
    gaps = differences.reshape(count, -1)
    numbers = bins_of(predicted).reshape(gaps.shape)
    terms = np.zeros((count, BINS + 1))
    for number in range(BINS):
        is_in_bin = numbers == number
        in_bin = np.where(is_in_bin, gaps, 0.0)
        terms[:, number] = in_bin.sum(axis=1)
    terms[:, BINS] = gaps.shape[1]
    return terms


def _calibration_error(terms: Numbers) -> Numbers:
    *gaps, count = terms
    distances = np.abs(gaps)
    return distances.sum(axis=0) / count


def correlation(shared: Numbers, spread: Numbers, varies: Numbers) -> Numbers:
    """Return covariances over roots of products of variances; 0 where one of these does not vary."""
    positive = np.where(varies, spread, 1)
    root = np.sqrt(positive)
    shares = shared / root
    within = shares.clip(-1, 1)  # rounding may lead out of it
    return np.where(varies, within, 0.0)


class Metric(NamedTuple):
    """A metric that is a function of sums over examples."""

    terms: Callable[[Numbers, Numbers, Numbers], Numbers]  # the columns to sum, from labels, predictions and classes
    score: Callable[[Numbers], Numbers]  # the metric by these sums, (terms, ...)


OF_CLASSES = {
    "accuracy": Metric(_counts, _accuracy),
    "f1": Metric(_counts, _f1_of_positive),
    "micro_f1": Metric(_counts, _micro_f1),
    "macro_f1": Metric(_counts, _macro_f1),
    "matthews_correlation": Metric(_counts, _matthews),
}
OF_TEXTS = {  # metrics whose predictions are one score per text
    "exact_match": Metric(_with_count, _mean),
    "rouge_l": Metric(_with_count, _mean),
}
METRICS = {
    **OF_CLASSES,
    **OF_TEXTS,
    PEARSON: Metric(_moments, _pearson),
    "mae": Metric(_distances, _mean),
    "rmse": Metric(_squares, _root_of_mean),
    ECE: Metric(_gaps, _calibration_error),
    "brier": Metric(_with_count, _mean),  # mean of the texts' scores
}
