"""Areas under curves of many resamples at once, by how often each example is in them."""

from collections.abc import Callable

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from pipeline.tasks.task import Numbers

# Area from the weights of positive and negative examples, by ascending score.
Area = Callable[[Numbers, Numbers], Numbers]


def roc_auc(labels: Numbers, scores: Numbers) -> float:
    """Return the mean area under the ROC curves of labels, (examples, labels) of 0 and 1; undefined ones are left out.

    It is undefined, and if all are the mean is 0, where all examples have a label, or none has.
    """
    return _mean_of_defined(roc_auc_score, labels, scores)


def average_precision(labels: Numbers, scores: Numbers) -> float:
    """Return the mean of scikit-learn's average precision of labels, as `roc_auc`."""
    return _mean_of_defined(average_precision_score, labels, scores)


def _mean_of_defined(area: Callable[..., float], labels: Numbers, scores: Numbers) -> float:
    areas = [area(labels[:, place], scores[:, place]) for place in _find_defined(labels)]
    return float(np.mean(areas)) if areas else 0.0


def _find_defined(labels: Numbers) -> Numbers:
    """Return the places of labels that some examples have, and others have not."""
    return np.flatnonzero(np.ptp(labels, axis=0))


def areas_of(name: str, labels: Numbers, scores: Numbers, weights: Numbers) -> Numbers:  # (resamples,)
    """Return the mean area over labels for each resample, by the weights (resamples, examples).

    A label is left out of the mean as of the whole sample; in a resample where its area is undefined it counts as 0.
    """
    areas = list[Numbers]()
    for place in _find_defined(labels):
        order = np.argsort(scores[:, place], kind="stable")
        ascending = scores[order, place]
        # First of each run of examples with equal scores.
        first = np.flatnonzero(np.diff(ascending, prepend=ascending[0] - 1))
        has_label = labels[order, place] > 0
        sorted_weights = weights[:, order]
        positive = np.add.reduceat(sorted_weights * has_label, first, axis=1)
        negative = np.add.reduceat(sorted_weights * ~has_label, first, axis=1)
        areas.append(AREAS[name](positive, negative))
    return np.mean(areas, axis=0) if areas else np.zeros(len(weights))


def _roc_auc(positive: Numbers, negative: Numbers) -> Numbers:
    """Return the share of pairs of a positive and a negative example in the right order; equal ones are half right."""
    below = negative.cumsum(axis=1) - negative / 2
    right = (positive * below).sum(axis=1)
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    return np.where(pairs > 0, right / np.maximum(pairs, 1), 0.0)


def _average_precision(positive: Numbers, negative: Numbers) -> Numbers:
    """Return the sum of precisions at each score, times how much recall grows there."""
    hits = positive[:, ::-1].cumsum(axis=1)
    answers = hits + negative[:, ::-1].cumsum(axis=1)
    precisions = hits / np.maximum(answers, 1)
    gained = (precisions * positive[:, ::-1]).sum(axis=1)
    return gained / np.maximum(positive.sum(axis=1), 1)


AREAS: dict[str, Area] = {"roc_auc": _roc_auc, "average_precision": _average_precision}
