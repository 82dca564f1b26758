"""The official scores of the tasks, how sure they are, and whether the model's confidence can be trusted.

The score itself comes from scikit-learn or scipy. Its 95 % interval is a percentile bootstrap over the examples:
thousands of calls, too slow with the libraries on a large split. The same scores are therefore written here once more,
for a whole stack of resamples at a time, and the tests hold the two forms together.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from pipeline.errors import UserError

Numbers = NDArray[Any]  # (examples,): class numbers from 0, or real numbers
Values = NDArray[np.float64]

PERCENTILES = (2.5, 97.5)
NUMBERS_AT_ONCE = 4_000_000  # 32 MB an array: a long stack of resamples is scored in pieces
ROUNDING = 1e-12  # numbers that differ by less than this share of the largest are one number
BINS = 15


def score(metrics: Sequence[str], predictions: Numbers, labels: Numbers) -> dict[str, float]:
    """Return each metric of `predictions` against `labels`, both (examples,).

    accuracy, f1 (of class 1 of two) and macro_f1 are fractions in [0, 1]; matthews_correlation, pearson and spearman
    are in [-1, 1]. Where a metric is undefined it is 0: f1 without a predicted or true example of the class, a
    correlation with something constant.

    Raises:
        ValueError: if a metric is unknown, or if the two arrays are empty or of different lengths.
        UserError: if a prediction is not a finite number.
    """
    _check(metrics, predictions, labels)
    return {name: float(_EXACT[name](labels, predictions)) for name in metrics}


def intervals(
    metrics: Sequence[str], predictions: Numbers, labels: Numbers, resamples: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Return the 95 % interval (low, high) of each metric over resampled examples; all share the same resamples.

    It says how much the score would move with other examples of the same kind, not with another training run. The order
    of the examples does not matter.

    Raises:
        ValueError: if a metric is unknown, or if the two arrays are empty or of different lengths.
        UserError: if a prediction is not a finite number.

    Reference: Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    _check(metrics, predictions, labels)
    bounds: dict[str, tuple[float, float]] = {}
    if counted := [name for name in metrics if name in _OF_COUNTS]:
        stack = _resampled_counts(predictions, labels, resamples, seed)
        bounds |= _percentiles({name: _OF_COUNTS[name] for name in counted}, stack)
    if correlated := [name for name in metrics if name in _OF_PAIRS]:
        pairs = _resampled_pairs(predictions, labels, resamples, seed)
        bounds |= _percentiles({name: _OF_PAIRS[name] for name in correlated}, pairs)
    return {name: bounds[name] for name in metrics}


def calibration_error(
    probabilities: Values,  # (examples, classes)
    labels: Numbers,  # (examples,)
) -> float:
    """Return the expected gap between confidence and accuracy: a fraction in [0, 1], 0 is perfectly calibrated.

    The examples are binned by the probability of their most probable class, 15 equal bins (low, high]; each bin counts
    by its share of the examples. The estimate is too high when bins hold few examples.

    Raises:
        ValueError: if there are no examples, the lengths differ, or a row is not a probability distribution.
        UserError: if a probability is not a finite number.

    Reference: Guo et al., "On calibration of modern neural networks", arXiv 1706.04599, section 2.
    """
    if probabilities.ndim != 2 or len(probabilities) != len(labels) or not len(labels):
        raise ValueError(
            f"probabilities must be (examples, classes) for {len(labels)} labels, got {probabilities.shape}"
        )
    _check_finite(probabilities)
    if not ((probabilities >= 0).all() and np.allclose(probabilities.sum(axis=1), 1, atol=1e-3)):
        raise ValueError("each row of probabilities must be >= 0 and sum to 1; were these logits?")
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
    bins = np.digitize(confidence, np.linspace(0, 1, BINS + 1)[1:-1], right=True)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(labels))


def _check(metrics: Sequence[str], predictions: Numbers, labels: Numbers) -> None:
    if unknown := [name for name in metrics if name not in _EXACT]:
        raise ValueError(f"metrics must be among {list(_EXACT)}, got {unknown}")
    if predictions.shape != labels.shape or labels.ndim != 1 or not len(labels):
        raise ValueError(
            f"predictions and labels must be two equally long rows, got {predictions.shape} and {labels.shape}"
        )
    _check_finite(predictions)


def _check_finite(predictions: Numbers | Values) -> None:
    if lost := np.count_nonzero(~np.isfinite(predictions)):
        raise UserError(
            f"predictions: {lost} of {predictions.size} are not finite numbers: training diverged; lower learning_rate"
        )


# The scores of one sample, (labels, predictions) -> number.


def _matthews(labels: Numbers, predictions: Numbers) -> float:
    # scikit-learn's answer for a single class is 0 too, but with a warning.
    return 0.0 if _is_constant(np.concatenate([labels, predictions])) else matthews_corrcoef(labels, predictions)


def _pearson(labels: Numbers, predictions: Numbers) -> float:
    if _is_constant(labels) or _is_constant(predictions):
        return 0.0
    return stats.pearsonr(labels, predictions).statistic


def _spearman(labels: Numbers, predictions: Numbers) -> float:
    if np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return 0.0
    return stats.spearmanr(labels, predictions).statistic


_EXACT: dict[str, Callable[[Numbers, Numbers], float]] = {
    "accuracy": accuracy_score,
    "f1": lambda labels, predictions: f1_score(labels, predictions, zero_division=0.0),
    "macro_f1": lambda labels, predictions: f1_score(labels, predictions, average="macro", zero_division=0.0),
    "matthews_correlation": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}


# The same scores of a stack of resamples.


class _Counts(NamedTuple):
    """How often each class was right, true and predicted: all that a score of classes looks at."""

    right: Values  # (resamples, classes)
    true: Values  # (resamples, classes)
    predicted: Values  # (resamples, classes)


class _Pairs(NamedTuple):
    labels: Values  # (resamples, examples)
    predictions: Values  # (resamples, examples)


def _resampled_counts(predictions: Numbers, labels: Numbers, resamples: int, seed: int) -> Iterator[_Counts]:
    """Draw examples with replacement: the cells of the confusion matrix are then multinomial, so draw those instead."""
    cells, counts = np.unique(np.stack([labels, predictions]).astype(np.int64), axis=1, return_counts=True)
    classes = np.arange(max(2, cells.max() + 1))
    is_true, is_predicted = (cells[:, :, np.newaxis] == classes).astype(np.float64)  # (cells, classes) each
    random = np.random.default_rng(seed)
    for size in _pieces(resamples, len(counts) + 3 * len(classes)):
        drawn = random.multinomial(len(labels), counts / len(labels), size=size).astype(np.float64)
        yield _Counts(drawn @ (is_true * is_predicted), drawn @ is_true, drawn @ is_predicted)


def _resampled_pairs(predictions: Numbers, labels: Numbers, resamples: int, seed: int) -> Iterator[_Pairs]:
    """Draw examples with replacement."""
    order = np.lexsort((predictions, labels))  # so that the interval belongs to the set of examples, not to their order
    labels, predictions = labels[order].astype(np.float64), predictions[order].astype(np.float64)
    random = np.random.default_rng(seed)
    for size in _pieces(resamples, len(labels)):
        drawn = random.integers(len(labels), size=(size, len(labels)))
        yield _Pairs(labels[drawn], predictions[drawn])


def _pieces(resamples: int, numbers: int) -> Iterator[int]:
    """Cut `resamples` of so many numbers each into pieces that fit in memory."""
    piece = max(1, NUMBERS_AT_ONCE // numbers)
    yield from (min(piece, resamples - start) for start in range(0, resamples, piece))


def _percentiles(scores: dict[str, Callable[[Any], Values]], stack: Iterator[Any]) -> dict[str, tuple[float, float]]:
    values = [[of(piece) for of in scores.values()] for piece in stack]
    bounds = np.percentile(np.concatenate(values, axis=1), PERCENTILES, axis=1).T.tolist()
    return {name: (low, high) for name, (low, high) in zip(scores, bounds, strict=True)}


def _accuracy_of(counts: _Counts) -> Values:
    return counts.right.sum(axis=1) / counts.true.sum(axis=1)


def _class_f1_of(counts: _Counts) -> Values:  # (resamples, classes)
    return _ratio(2 * counts.right, counts.true + counts.predicted)


def _macro_f1_of(counts: _Counts) -> Values:
    # As in scikit-learn: a class that is neither true nor predicted in a sample does not count there.
    present = (counts.true + counts.predicted > 0).sum(axis=1)
    return _class_f1_of(counts).sum(axis=1) / present


def _matthews_of(counts: _Counts) -> Values:
    """Reference: Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004."""
    size = counts.true.sum(axis=1)
    together = counts.right.sum(axis=1) * size - (counts.true * counts.predicted).sum(axis=1)
    alone = (size**2 - (counts.true**2).sum(axis=1)) * (size**2 - (counts.predicted**2).sum(axis=1))
    return _ratio(together, np.sqrt(alone))


def _pearson_of(pairs: _Pairs) -> Values:
    defined = ~(_is_constant(pairs.labels) | _is_constant(pairs.predictions))
    x, y = (values - values.mean(axis=1, keepdims=True) for values in pairs)
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    return _ratio(np.einsum("ij,ij->i", x, y), np.where(defined, norms, 0))


def _spearman_of(pairs: _Pairs) -> Values:
    return _pearson_of(_Pairs(*(stats.rankdata(values, axis=1) for values in pairs)))


_OF_COUNTS: dict[str, Callable[[_Counts], Values]] = {
    "accuracy": _accuracy_of,
    "f1": lambda counts: _class_f1_of(counts)[:, 1],
    "macro_f1": _macro_f1_of,
    "matthews_correlation": _matthews_of,
}
_OF_PAIRS: dict[str, Callable[[_Pairs], Values]] = {"pearson": _pearson_of, "spearman": _spearman_of}


def _is_constant(values: Numbers) -> Any:  # (..., examples) -> (...)
    return np.ptp(values, axis=-1) <= ROUNDING * np.abs(values).max(axis=-1)


def _ratio(above: Values, below: Values) -> Values:
    """Return `above / below`, and 0 where `below` is 0."""
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)
