"""The official scores of the tasks, and their 95 % confidence intervals.

An interval shows how much a score would vary with other examples of the same kind, not with another training run.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, precision_recall_fscore_support

from pipeline.core.errors import UserError
from pipeline.params.labels import has_exact_interval
from pipeline.tasks import sums
from pipeline.tasks.sums import ROUNDING
from pipeline.tasks.task import Numbers

Metric = Callable[[Numbers, Numbers], float]  # of labels and predictions
Interval = tuple[float, float]
OfDrawn = Callable[[Numbers], Numbers]  # numbers of drawn units, (resamples, units), to scores, (resamples,)

CONFIDENCE = 0.95
BY_CLASS = ("class", "precision", "recall", "f1", "texts", "answers")
SIGNED = ("matthews_correlation", "pearson", "spearman")  # in [-1, 1]; the others are in [0, 1]
NUMBERS_AT_ONCE = 4_000_000  # indices of resamples in memory, 32 MB
MOST_TERMS = (
    10_000_000  # numbers that are summed over examples, 80 MB: of many classes, resamples are scored one by one
)


def score(
    metrics: Sequence[str], predictions: Numbers, labels: Numbers, groups: Numbers | None = None
) -> dict[str, float]:
    """Return each metric of `predictions` against `labels`, both (examples,), or (examples, labels) of 0 and 1.

    accuracy, f1 (of class 1 of two), micro_f1 and macro_f1 are fractions in [0, 1]; matthews_correlation, pearson and
    spearman are in [-1, 1]. exact_match is the share of groups without a mistake; `groups` holds the group number of
    each example. An undefined metric is 0: f1 if no example has or is predicted as the class, a correlation with a
    constant.

    Raises:
        UserError: if a prediction is not a finite number.
    """
    if lost := np.count_nonzero(~np.isfinite(predictions)):
        raise UserError(
            f"predictions: {lost} of {predictions.size} are not finite numbers: training diverged; lower learning_rate"
        )
    right = _are_right(labels, predictions, groups)
    return {
        name: float(right.mean() if name == "exact_match" else EXAMPLES[name](labels, predictions)) for name in metrics
    }


def interval(
    name: str, predictions: Numbers, labels: Numbers, resamples: int, groups: Numbers | None = None
) -> Interval:
    """Return the 95 % confidence interval (low, high) of a metric. The order of the examples does not matter.

    A share of independent examples or groups has the exact interval of Clopper and Pearson. So does f1, which is
    2j / (1 + j), where j is the share of hits among the examples that are, or are predicted as, class 1. All other
    intervals are percentiles of a bootstrap over examples, or over whole groups; all use the same resamples.

    Reference: Clopper & Pearson, "The use of confidence or fiducial limits", 1934; Efron & Tibshirani, "An Introduction
    to the Bootstrap", 1993, chapter 13.
    """
    if has_exact_interval(name, in_groups=groups is not None):
        return _exact(name, predictions, labels, groups)
    units = Units.of(predictions, labels, groups)
    if name in sums.METRICS and sums.size_of(name, labels, predictions) <= MOST_TERMS:
        return _percentiles(_by_sums(name, predictions, labels, units), len(units.first), resamples)
    if name == "spearman" and groups is None:
        return _percentiles(_by_ranks(predictions, labels, units), len(units.first), resamples)
    return bootstrap(EXAMPLES[name], predictions, labels, resamples, groups)


def _exact(name: str, predictions: Numbers, labels: Numbers, groups: Numbers | None) -> Interval:
    """Return the exact interval of f1, or of the share of examples or groups without a mistake."""
    if name == "f1":
        hits, seen = (labels == 1) & (predictions == 1), (labels == 1) | (predictions == 1)
        low, high = share(int(hits.sum()), int(seen.sum()))
        return 2 * low / (1 + low), 2 * high / (1 + high)
    right = _are_right(labels, predictions, groups)
    return share(int(right.sum()), len(right))


def by_class(
    names: Sequence[str], predictions: Numbers, labels: Numbers
) -> list[tuple[str | float, ...]]:  # of BY_CLASS
    """Return a row for each class or label: precision, recall, F1, texts that have it, and answers that name it."""
    both = [np.eye(len(names))[its] if its.ndim == 1 else its for its in (labels, predictions)]
    found = precision_recall_fscore_support(*both, average=None, zero_division=0.0)
    answers = both[1].sum(axis=0)
    return [
        (name, *map(float, its[:3]), int(its[3]), int(said))
        for name, said, *its in zip(names, answers, *found, strict=True)
    ]


def share(count: int, of: int) -> Interval:
    """Return the exact interval of a share; for a share of nothing, [0, 1]."""
    if of == 0:
        return 0.0, 1.0
    bounds = stats.binomtest(count, of).proportion_ci(CONFIDENCE, method="exact")
    return float(bounds.low), float(bounds.high)


def bootstrap(
    metric: Metric, predictions: Numbers, labels: Numbers, resamples: int, groups: Numbers | None = None
) -> Interval:
    """Return the 95 % interval of any metric by resampling examples, or whole groups, and scoring each resample."""
    units = Units.of(predictions, labels, groups)
    parts = np.split(units.order, units.first[1:])

    def of_drawn(drawn: Numbers) -> Numbers:
        rows = (np.concatenate([parts[number] for number in numbers]) for numbers in drawn)
        return np.array([float(metric(labels[one], predictions[one])) for one in rows])

    return _percentiles(of_drawn, len(parts), resamples)


class Units(NamedTuple):
    """What a bootstrap draws: examples or whole groups, in an order that is not that of the examples."""

    order: Numbers  # positions of all examples, unit after unit
    first: Numbers  # where in `order` each unit begins

    @classmethod
    def of(cls, predictions: Numbers, labels: Numbers, groups: Numbers | None) -> "Units":
        """Return single examples, or groups of them by number."""
        keys = (*np.atleast_2d(predictions.T), *np.atleast_2d(labels.T))
        if groups is None:
            return cls(np.lexsort(keys), np.arange(len(labels)))
        order = np.lexsort((*keys, groups))
        return cls(order, np.flatnonzero(np.diff(groups[order], prepend=groups[order[0]] - 1)))


def _by_sums(name: str, predictions: Numbers, labels: Numbers, units: Units) -> OfDrawn:
    columns = sums.columns_of(name, labels[units.order], predictions[units.order])
    of_units = np.add.reduceat(columns, units.first)

    def of_drawn(drawn: Numbers) -> Numbers:
        return sums.scores_of(name, sums.weights_of(drawn, len(of_units)), of_units)[:, 0]

    return of_drawn


def _by_ranks(predictions: Numbers, labels: Numbers, units: Units) -> OfDrawn:
    """Return Spearman's correlation: Pearson's of the ranks, equal numbers sharing theirs."""

    def of_drawn(drawn: Numbers) -> Numbers:
        rows = units.order[drawn]
        x, y = (stats.rankdata(values[rows], axis=1) for values in (predictions, labels))
        x, y = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (x, y))
        spread = (x * x).sum(axis=1) * (y * y).sum(axis=1)
        return np.where(spread > 0, (x * y).sum(axis=1) / np.sqrt(np.where(spread > 0, spread, 1)), 0.0)

    return of_drawn


def _percentiles(of_drawn: OfDrawn, count: int, resamples: int) -> Interval:
    """Return the percentiles of scores of so many drawn units; the same draws for as many of them."""
    numbers = np.arange(count)
    if count == 1:  # every resample equals the sample
        (whole,) = of_drawn(numbers[None])
        return float(whole), float(whole)
    bounds = stats.bootstrap(
        (numbers,),
        lambda drawn, axis: of_drawn(drawn),
        n_resamples=resamples,
        batch=max(1, NUMBERS_AT_ONCE // count),
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(bounds.low), float(bounds.high)


def _are_right(labels: Numbers, predictions: Numbers, groups: Numbers | None) -> Numbers:
    """Return whether each example, or each group in the order of their numbers, is without a mistake."""
    return labels == predictions if groups is None else ~np.isin(np.unique(groups), groups[labels != predictions])


def _macro_f1(labels: Numbers, predictions: Numbers) -> float:
    if labels.ndim == 1:
        return float(f1_score(labels, predictions, average="macro", zero_division=0.0))
    # scikit-learn takes milliseconds for labels, of each resample, and counts those that nothing has.
    texts, answers, hits = labels.sum(axis=0), predictions.sum(axis=0), (labels * predictions).sum(axis=0)
    occurs = texts + answers > 0
    return float(_f1(texts, answers, hits)[occurs].mean()) if occurs.any() else 0.0


def _f1(texts: Numbers, answers: Numbers, hits: Numbers) -> Any:
    return 2 * hits / np.maximum(texts + answers, 1)


def _matthews(labels: Numbers, predictions: Numbers) -> float:
    # scikit-learn also returns 0 for a single class, but with a warning.
    return 0.0 if _is_constant(np.concatenate([labels, predictions])) else matthews_corrcoef(labels, predictions)


def _correlation(of: Callable[[Numbers, Numbers], Any]) -> Metric:
    def found(labels: Numbers, predictions: Numbers) -> float:
        return 0.0 if _is_constant(labels) or _is_constant(predictions) else of(labels, predictions).statistic

    return found


def _is_constant(values: Numbers) -> bool:
    return bool(np.ptp(values) <= ROUNDING * np.abs(values).max())


EXAMPLES: dict[str, Metric] = {  # metrics of examples
    "accuracy": accuracy_score,
    "f1": lambda labels, predictions: f1_score(labels, predictions, zero_division=0.0),
    "micro_f1": lambda labels, predictions: _f1(labels.sum(), predictions.sum(), (labels * predictions).sum()),
    "macro_f1": _macro_f1,
    "matthews_correlation": _matthews,
    "pearson": _correlation(stats.pearsonr),
    "spearman": _correlation(stats.spearmanr),
    "rouge_l": lambda labels, predictions: float(predictions.mean()),  # which are that of each text
}
