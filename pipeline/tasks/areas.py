"""Areas under curves of many resamples at once, by how often each example is in them."""

from collections.abc import Callable

import numpy as np

from pipeline.tasks.task import Numbers

# Area from the weights of positive and negative examples, by ascending score.
Area = Callable[[Numbers, Numbers], Numbers]


def area_of(name: str, labels: Numbers, scores: Numbers) -> float:
    """Return the mean area under the curves of labels, (examples, labels) of 0 and 1; undefined ones are left out.

    It is undefined, and if all are the mean is 0, where all examples have a label, or none has.
    """
    once = np.ones((1, len(labels)))
    (mean,) = areas_of(name, labels, scores, once)
    return float(mean)


def areas_of(
    name: str,
    labels: Numbers,
    scores: Numbers,
    weights: Numbers,
) -> Numbers:  # (resamples,)
    """Return the mean area over labels for each resample, by the weights (resamples, examples).

    As in the whole sample, labels whose area is undefined are left out of the mean; it is nan where all are.
    """
    area = AREAS[name]
    varies = np.ptp(labels, axis=0)
    places = np.flatnonzero(varies)
    if not len(places):
        return np.zeros(len(weights))
    total = np.zeros(len(weights))
    counts = np.zeros(len(weights), np.int64)
    for place in places:
        actual = labels[:, place]
        own_scores = scores[:, place]
        positive, negative = _sum_by_score(actual, own_scores, weights)
        is_defined = positive.any(axis=1) & negative.any(axis=1)
        total += np.where(is_defined, area(positive, negative), 0.0)
        counts += is_defined
    means = total / counts.clip(min=1)
    return np.where(counts > 0, means, np.nan)


def _sum_by_score(
    labels: Numbers,
    scores: Numbers,
    weights: Numbers,
) -> tuple[Numbers, Numbers]:
    """Return the weights of positive and of negative examples with each score, both (resamples, scores), ascending."""
    order = np.argsort(scores, kind="stable")
    ascending = scores[order]
    steps = np.diff(ascending)
    starts = 1 + np.flatnonzero(steps)
    first = np.concatenate([[0], starts])
    in_order = weights[:, order]
    has_label = labels[order] > 0
    of_positive = in_order * has_label
    of_negative = in_order * ~has_label
    positive = np.add.reduceat(of_positive, first, axis=1)
    negative = np.add.reduceat(of_negative, first, axis=1)
    return positive, negative


def _roc_auc(positive: Numbers, negative: Numbers) -> Numbers:
    """Return the share of pairs of a positive and a negative example in the right order; equal ones are half right."""
    below = negative.cumsum(axis=1) - negative / 2
    products = positive * below
    right = products.sum(axis=1)
    positives = positive.sum(axis=1)
    negatives = negative.sum(axis=1)
    pairs = positives * negatives
    return right / np.maximum(pairs, 1)


def _average_precision(positive: Numbers, negative: Numbers) -> Numbers:
    """Return the sum of precisions at each score, times how much recall grows there."""
    descending = positive[:, ::-1]
    others = negative[:, ::-1]
    hits = descending.cumsum(axis=1)
    misses = others.cumsum(axis=1)
    answers = np.maximum(hits + misses, 1)
    precisions = hits / answers
    products = precisions * descending
    gained = products.sum(axis=1)
    positives = positive.sum(axis=1)
    return gained / np.maximum(positives, 1)


AREAS: dict[str, Area] = {
    "roc_auc": _roc_auc,
    "average_precision": _average_precision,
}
