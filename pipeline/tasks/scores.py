"""The official scores of the tasks, and their 95 % confidence intervals.

An interval shows how much a score would vary with other examples of the same kind, not with another training run.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    matthews_corrcoef,
    mean_absolute_error,
    precision_recall_fscore_support,
    root_mean_squared_error,
)

from pipeline.core.errors import UserError
from pipeline.params.labels import has_exact_interval
from pipeline.tasks import areas, sums
from pipeline.tasks.sums import ROUNDING
from pipeline.tasks.task import Groups, Numbers, Scores, name_interval

Metric = Callable[[Numbers, Numbers], float]  # computes a score from labels and predictions
Interval = tuple[float, float]
OfDrawn = Callable[[Numbers], Numbers]  # numbers of drawn units, (resamples, units), to scores, (resamples,)

CONFIDENCE = 0.95
BY_CLASS = ("class", "precision", "recall", "f1", "texts", "answers")
SIGNED = ("matthews_correlation", "pearson", "spearman")  # metrics in [-1, 1]; the others are in [0, 1]
NUMBERS_AT_ONCE = 4_000_000  # indices of resamples in memory, 32 MB
# Numbers that are summed over examples, 80 MB: of many classes, resamples are scored one by one.
MAX_TERMS = 10_000_000


def score(
    metrics: Sequence[str],
    predictions: Numbers,
    labels: Numbers,
    groups: Groups = None,
) -> Scores:
    """Return each metric of `predictions` against `labels`, both (examples,), or (examples, labels) of 0 and 1.

    accuracy, f1 (of class 1 of two), micro_f1 and macro_f1 are fractions in [0, 1]; matthews_correlation, pearson and
    spearman are in [-1, 1]. exact_match is the share of groups without a mistake; `groups` holds the group number of
    each example. An undefined metric is 0: f1 if no example has or is predicted as the class, a correlation with a
    constant.

    Raises:
        UserError: if a prediction is not a finite number.
    """
    is_finite = np.isfinite(predictions)
    others = np.count_nonzero(~is_finite)
    if others:
        what = f"{others} of {predictions.size} are not finite numbers"
        raise UserError(f"predictions: {what}: training diverged; lower learning_rate")
    scores = Scores()
    for name in metrics:
        if name == "exact_match":
            are_right = _are_right(labels, predictions, groups)
            scores[name] = float(are_right.mean())
        else:
            metric = EXAMPLES[name]
            scores[name] = float(metric(labels, predictions))
    return scores


def interval(
    name: str,
    predictions: Numbers,
    labels: Numbers,
    resamples: int,
    groups: Groups = None,
) -> Interval:
    """Return the 95 % confidence interval (low, high) of a metric. The order of the examples does not matter.

    A share of independent examples or groups has the exact interval of Clopper and Pearson. So does f1, which is
    2j / (1 + j), where j is the share of hits among the examples that are, or are predicted as, class 1. All other
    intervals are percentiles of a bootstrap over examples, or over whole groups; all use the same resamples. That of a
    calibration error, which noise makes larger in the sample and again in each resample, is the basic bootstrap's.

    Reference: Clopper & Pearson, "The use of confidence or fiducial limits", 1934; Efron & Tibshirani, "An Introduction
    to the Bootstrap", 1993, chapter 13; Davison & Hinkley, "Bootstrap Methods and their Application", 1997, section 5.2
    (basic).
    """
    if has_exact_interval(name, in_groups=groups is not None):
        return _exact(name, predictions, labels, groups)
    units = Units.of(predictions, labels, groups)
    of_drawn = _of_drawn(name, predictions, labels, groups, units)
    ends = _percentiles(of_drawn, len(units.first), resamples)
    if name != sums.ECE:
        return ends
    return _correct_bias(EXAMPLES[name](labels, predictions), ends)


def _correct_bias(error: float, ends: Interval) -> Interval:
    """Return the basic bootstrap's interval from the percentiles' for an error in [0, 1], which it always contains."""
    low, high = ends
    return max(0.0, 2 * error - high), min(1.0, max(error, 2 * error - low))


def score_with_intervals(
    metrics: Sequence[str],
    predictions: Numbers,
    labels: Numbers,
    groups: Groups,
    resamples: int,
    prefix: str = "",
) -> Scores:
    """Return each metric and the ends of its 95 % interval: NAME, NAME_low and NAME_high, each after a prefix.

    Raises:
        UserError: as `score`.
    """
    scores = Scores()
    for name, value in score(metrics, predictions, labels, groups).items():
        key = f"{prefix}{name}"
        scores[key] = value
        scores |= name_interval(key, interval(name, predictions, labels, resamples, groups))
    return scores


def difference(
    name: str,
    predictions: Numbers,
    baseline: Numbers,
    labels: Numbers,
    resamples: int,
    groups: Groups = None,
) -> Interval:
    """Return the 95 % interval of the difference in a metric between `predictions` and a `baseline`, paired by example.

    It is a paired bootstrap: each resample of examples, or of whole groups, is used for both.
    """
    both = np.column_stack([predictions, baseline])
    units = Units.of(both, labels, groups)
    of_predictions = _of_drawn(name, predictions, labels, groups, units)
    of_baseline = _of_drawn(name, baseline, labels, groups, units)

    def of_drawn(drawn: Numbers) -> Numbers:
        return of_predictions(drawn) - of_baseline(drawn)

    return _percentiles(of_drawn, len(units.first), resamples)


def _of_drawn(
    name: str,
    predictions: Numbers,
    labels: Numbers,
    groups: Groups,
    units: "Units",
) -> OfDrawn:
    """Return a function that scores resamples of units by a metric."""
    if name == "exact_match" and groups is not None:
        right = _are_right(labels, predictions, groups)
        return lambda drawn: right[drawn].mean(axis=1)
    if name in sums.METRICS and sums.size_of(name, labels, predictions) <= MAX_TERMS:
        return _by_sums(name, predictions, labels, units)
    if name in areas.AREAS:
        return _by_areas(name, predictions, labels, units)
    if name == "spearman" and groups is None:
        return _by_ranks(predictions, labels, units)
    return _one_by_one(EXAMPLES[name], predictions, labels, units)


def _exact(name: str, predictions: Numbers, labels: Numbers, groups: Groups) -> Interval:
    """Return the exact interval of f1, or of the share of examples or groups without a mistake."""
    if name == "f1":
        is_actual = labels == 1
        is_predicted = predictions == 1
        hits = is_actual & is_predicted
        either = is_actual | is_predicted
        hit_count = int(hits.sum())
        count = int(either.sum())
        low, high = share(hit_count, count)
        return _f1_of_share(low), _f1_of_share(high)
    right = _are_right(labels, predictions, groups)
    right_count = int(right.sum())
    return share(right_count, len(right))


def _f1_of_share(hits: float) -> float:
    return 2 * hits / (1 + hits)


def interval_of_mean(values: Numbers, lows: Numbers, highs: Numbers) -> Interval:
    """Return the 95 % interval of a mean over parts, such as tenants, that are a sample themselves.

    It is Student's t interval of the scores, but at least as wide as the interval for these parts with other examples,
    which follows from the intervals [low, high] of the scores: see `TenantsScoring.parts`. For a single part it is the
    part's own.
    """
    count = len(values)
    if count == 1:
        return float(lows[0]), float(highs[0])
    with_parts = half_width(values)
    below = np.linalg.norm(lows - values) / count
    above = np.linalg.norm(highs - values) / count
    mean = values.mean()
    low = mean - max(with_parts, below)
    high = mean + max(with_parts, above)
    return float(low), float(high)


def half_width(values: Sequence[float] | Numbers) -> float:
    """Return half the width of Student's 95 % interval of the mean of at least two values: t · std / √n."""
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    return float(quantile * stats.sem(values))


def by_class(
    names: Sequence[str],
    predictions: Numbers,
    labels: Numbers,
) -> list[tuple[str | float, ...]]:  # columns: BY_CLASS
    """Return a row per class or label: precision, recall, F1, and the number of texts and of predictions with it."""
    if labels.ndim == 1:
        flags = np.eye(len(names))
        labels = flags[labels]
        predictions = flags[predictions]
    *scored, texts = precision_recall_fscore_support(labels, predictions, average=None, zero_division=0.0)
    shares = [column.tolist() for column in scored]
    answers = predictions.sum(axis=0)
    counts = [column.astype(int).tolist() for column in (texts, answers)]
    return list(zip(names, *shares, *counts, strict=True))


def share(count: int, of: int) -> Interval:
    """Return the exact interval of a share; for a share of nothing, [0, 1]."""
    if of == 0:
        return 0.0, 1.0
    bounds = stats.binomtest(count, of).proportion_ci(CONFIDENCE, method="exact")
    return float(bounds.low), float(bounds.high)


def bootstrap(metric: Metric, predictions: Numbers, labels: Numbers, resamples: int) -> Interval:
    """Return the 95 % interval of any metric by resampling examples, and scoring each resample."""
    units = Units.of(predictions, labels, None)
    of_drawn = _one_by_one(metric, predictions, labels, units)
    return _percentiles(of_drawn, len(units.first), resamples)


class Units(NamedTuple):
    """The units that a bootstrap draws: examples or whole groups, in an order independent of the examples' order."""

    order: Numbers  # positions of all examples, unit after unit
    first: Numbers  # position in `order` at which each unit begins

    @classmethod
    def of(cls, predictions: Numbers, labels: Numbers, groups: Groups) -> "Units":
        """Return single examples, or groups of them by number."""
        keys = [*np.atleast_2d(predictions.T), *np.atleast_2d(labels.T)]
        if groups is None:
            return cls(np.lexsort(keys), np.arange(len(labels)))
        order = np.lexsort((*keys, groups))
        numbers = groups[order]
        is_first = np.diff(numbers, prepend=numbers[0] - 1)
        return cls(order, np.flatnonzero(is_first))


def _one_by_one(metric: Metric, predictions: Numbers, labels: Numbers, units: Units) -> OfDrawn:
    parts = np.split(units.order, units.first[1:])

    def of_drawn(drawn: Numbers) -> Numbers:
        scores = list[float]()
        for numbers in drawn:
            drawn_parts = [parts[number] for number in numbers]
            rows = np.concatenate(drawn_parts)
            value = metric(labels[rows], predictions[rows])
            scores.append(float(value))
        return np.array(scores)

    return of_drawn


def _by_sums(name: str, predictions: Numbers, labels: Numbers, units: Units) -> OfDrawn:
    order = units.order
    columns = sums.columns_of(name, labels[order], predictions[order])
    of_units = np.add.reduceat(columns, units.first)

    def of_drawn(drawn: Numbers) -> Numbers:
        weights = sums.weights_of(drawn, len(of_units))
        scores = sums.scores_of(name, weights, of_units)
        return scores[:, 0]

    return of_drawn


def _by_areas(name: str, predictions: Numbers, labels: Numbers, units: Units) -> OfDrawn:
    order = units.order
    marks = np.zeros(len(order), np.int64)
    marks[units.first[1:]] = 1
    unit_of_example = marks.cumsum()

    def of_drawn(drawn: Numbers) -> Numbers:
        weights = sums.weights_of(drawn, len(units.first))
        of_examples = weights[:, unit_of_example]
        return areas.areas_of(name, labels[order], predictions[order], of_examples)

    return of_drawn


def _by_ranks(predictions: Numbers, labels: Numbers, units: Units) -> OfDrawn:
    """Return Spearman's correlation: Pearson's of the ranks, with mean ranks for ties."""

    def of_drawn(drawn: Numbers) -> Numbers:
        rows = units.order[drawn]
        x = _center_ranks(predictions[rows])
        y = _center_ranks(labels[rows])
        x_spread = (x * x).sum(axis=1)
        y_spread = (y * y).sum(axis=1)
        shared = (x * y).sum(axis=1)
        spread = x_spread * y_spread
        return sums.correlation(shared, spread, spread > 0)

    return of_drawn


def _center_ranks(values: Numbers) -> Numbers:  # (resamples, examples), of each resample by itself
    ranks = stats.rankdata(values, axis=1)
    return ranks - ranks.mean(axis=1, keepdims=True)


def _percentiles(of_drawn: OfDrawn, count: int, resamples: int) -> Interval:
    """Return the percentiles of bootstrap scores; the draws depend only on the number of units.

    Resamples whose score is undefined, nan, are left out.
    """
    numbers = np.arange(count)
    if count == 1:  # every resample equals the sample
        (whole,) = of_drawn(numbers[None])
        return float(whole), float(whole)
    # scipy warns where the score of a resample is undefined.
    with warnings.catch_warnings(action="ignore", category=stats.DegenerateDataWarning):
        result = stats.bootstrap(
            (numbers,),
            lambda drawn, axis: of_drawn(drawn),
            n_resamples=resamples,
            batch=max(1, NUMBERS_AT_ONCE // count),
            vectorized=True,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(0),
        )
    bounds = result.confidence_interval
    drawn_scores = result.bootstrap_distribution
    is_undefined = np.isnan(drawn_scores)
    if is_undefined.any():
        tail = 100 * (1 - CONFIDENCE) / 2
        low, high = np.percentile(drawn_scores[~is_undefined], [tail, 100 - tail])
        return float(low), float(high)
    return float(bounds.low), float(bounds.high)


def _are_right(labels: Numbers, predictions: Numbers, groups: Groups) -> Numbers:
    """Return whether each example, or each group in the order of group numbers, has no mistake."""
    if groups is None:
        return labels == predictions
    wrong = groups[labels != predictions]
    return ~np.isin(np.unique(groups), wrong)


def _macro_f1(labels: Numbers, predictions: Numbers) -> float:
    if labels.ndim == 1:
        return float(f1_score(labels, predictions, average="macro", zero_division=0.0))
    # scikit-learn takes milliseconds for labels, of each resample, and counts those that nothing has.
    hits = labels * predictions
    counts = [flags.sum(axis=0) for flags in (hits, labels, predictions)]
    score = sums.METRICS["macro_f1"].score(np.stack(counts))
    return float(score)


def _micro_f1(labels: Numbers, predictions: Numbers) -> float:
    hits = labels * predictions
    score = sums.f1(hits.sum(), labels.sum(), predictions.sum())
    return float(score)


def _of_sums(name: str, labels: Numbers, predictions: Numbers) -> float:
    columns = sums.columns_of(name, labels, predictions)
    once = np.ones((1, len(columns)))
    scores = sums.scores_of(name, once, columns)
    return float(scores[0, 0])


def _matthews(labels: Numbers, predictions: Numbers) -> float:
    if _is_constant(np.concatenate([labels, predictions])):
        return 0.0  # scikit-learn returns the same with a warning
    return matthews_corrcoef(labels, predictions)


def _correlation(of: Callable[[Numbers, Numbers], Any]) -> Metric:
    def correlation(labels: Numbers, predictions: Numbers) -> float:
        if _is_constant(labels) or _is_constant(predictions):
            return 0.0
        return of(labels, predictions).statistic

    return correlation


def _is_constant(values: Numbers) -> bool:
    largest = np.abs(values).max()
    return bool(np.ptp(values) <= ROUNDING * largest)


EXAMPLES: dict[str, Metric] = {  # metrics of examples
    "accuracy": accuracy_score,
    "f1": lambda labels, predictions: f1_score(labels, predictions, zero_division=0.0),
    "micro_f1": _micro_f1,
    "macro_f1": _macro_f1,
    "matthews_correlation": _matthews,
    "pearson": _correlation(stats.pearsonr),
    "spearman": _correlation(stats.spearmanr),
    "roc_auc": partial(areas.area_of, "roc_auc"),
    "average_precision": partial(areas.area_of, "average_precision"),
    "rmse": root_mean_squared_error,
    "mae": mean_absolute_error,
    "ece": partial(_of_sums, "ece"),
    "brier": lambda labels, predictions: float(predictions.mean()),  # predictions are the scores of each text
    "rouge_l": lambda labels, predictions: float(predictions.mean()),  # predictions are the metric of each text
}
