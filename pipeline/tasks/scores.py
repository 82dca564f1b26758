"""The official scores of the tasks."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from pipeline.core.errors import UserError

Numbers = NDArray[Any]  # (examples,): class indices, or real numbers

ROUNDING = 1e-12  # numbers that differ by less than this share of the largest count as equal


def score(
    metrics: Sequence[str], predictions: Numbers, labels: Numbers, groups: Numbers | None = None
) -> dict[str, float]:
    """Return each metric of `predictions` against `labels`, both (examples,).

    accuracy, f1 (of class 1 of two) and macro_f1 are fractions in [0, 1]; matthews_correlation, pearson and spearman
    are in [-1, 1]. exact_match is the share of groups without a mistake; `groups` holds the group number of each
    example. An undefined metric is 0: f1 if no example has or is predicted as the class, a correlation with a constant.

    Raises:
        UserError: if a prediction is not a finite number.
    """
    check_finite(predictions)
    found = {}
    for name in metrics:
        if groups is not None and name == "exact_match":
            found[name] = float(are_right(labels, predictions, groups).mean())
        else:
            found[name] = float(EXAMPLES[name](labels, predictions))
    return found


def check_finite(predictions: Numbers) -> None:
    """Check predictions.

    Raises:
        UserError: if one is not a finite number.
    """
    if lost := np.count_nonzero(~np.isfinite(predictions)):
        raise UserError(
            f"predictions: {lost} of {predictions.size} are not finite numbers: training diverged; lower learning_rate"
        )


def _matthews(labels: Numbers, predictions: Numbers) -> float:
    # scikit-learn also returns 0 for a single class, but with a warning.
    return 0.0 if _is_constant(np.concatenate([labels, predictions])) else matthews_corrcoef(labels, predictions)


def _pearson(labels: Numbers, predictions: Numbers) -> float:
    if _is_constant(labels) or _is_constant(predictions):
        return 0.0
    return stats.pearsonr(labels, predictions).statistic


def _spearman(labels: Numbers, predictions: Numbers) -> float:
    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return stats.spearmanr(labels, predictions).statistic


def _is_constant(values: Numbers) -> bool:
    return bool(np.ptp(values) <= ROUNDING * np.abs(values).max())


# Metrics of examples: (labels, predictions) -> number.
EXAMPLES: dict[str, Callable[[Numbers, Numbers], float]] = {
    "accuracy": accuracy_score,
    "f1": lambda labels, predictions: f1_score(labels, predictions, zero_division=0.0),
    "macro_f1": lambda labels, predictions: f1_score(labels, predictions, average="macro", zero_division=0.0),
    "matthews_correlation": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}


def are_right(labels: Numbers, predictions: Numbers, groups: Numbers) -> NDArray[np.bool_]:
    """Return for each group, in the order of their numbers, whether it is without a mistake."""
    return ~np.isin(np.unique(groups), groups[labels != predictions])
