"""Differences of scores vs. baselines on the same examples, with paired intervals.

One baseline is a constant prediction or, for text generation, the base model without the adapter; the other is a
regression.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.tasks import scores
from pipeline.tasks.completion import Generated, compare
from pipeline.tasks.scoring import OfPart, Scoring, best_constants, collect_predictions
from pipeline.tasks.task import Numbers, Outcome, Scores, name_interval

CONSTANT = "baseline"  # the baselines, as in names of metrics
REGRESSION = "regression"


class Difference(NamedTuple):
    """The difference of a score and a baseline's."""

    baseline: float  # score of the baseline
    mean: float
    low: float
    high: float


ByMetric = dict[str, Difference]


def over_constant(scoring: Scoring, outcome: Outcome, resamples: int) -> Scores:
    """Return each metric's difference vs. the constant baseline: `NAME_over_baseline`, with `_low` and `_high`."""
    each = list[ByMetric]()
    for part in scoring.of_parts(outcome):
        baseline = _find_baselines(part.scoring, part.outcome)
        each.append(_differences(part, baseline, resamples))
    return _by_name(CONSTANT, each)


def over_regression(
    scoring: Scoring,
    outcome: Outcome,
    regression: Scoring,
    of_regression: Outcome,
    resamples: int,
) -> Scores:
    """Return a regression's metrics, `NAME_regression`, and each metric's difference from them, `..._over_...`.

    `regression` is the scoring of the regression's outputs, whose thresholds may differ from those of `scoring`.
    """
    each = list[ByMetric]()
    known = Scores()
    parts = scoring.of_parts(outcome)
    rivals = regression.of_parts(of_regression)
    for part, rival in zip(parts, rivals, strict=True):
        baseline = _predict(rival.scoring, rival.outcome)
        each.append(_differences(part, baseline, resamples))
    for name in each[0]:
        of_parts = [differences[name].baseline for differences in each]
        mean = np.mean(of_parts)
        known[f"{name}_{REGRESSION}"] = float(mean)
    return known | _by_name(REGRESSION, each)


def _predict(scoring: Scoring, outcome: Outcome) -> dict[str, Numbers]:
    """Return the predictions that each metric scores; of texts, each metric of each text."""
    metrics = scoring.entry.metrics
    if isinstance(outcome, Generated):
        return {name: compare(name, outcome.texts, outcome.labels) for name in metrics}
    return dict.fromkeys(metrics, scoring.predict(outcome))


def _find_baselines(scoring: Scoring, outcome: Outcome) -> dict[str, Numbers]:
    """Return the best constant prediction for each metric; of texts, each metric of what the base model generates."""
    if isinstance(outcome, Generated):
        return {name: compare(name, outcome.base_texts, outcome.labels) for name in scoring.entry.metrics}
    _, labels, groups = collect_predictions(scoring, outcome)
    return best_constants(scoring, labels, groups)


def _differences(part: OfPart, baseline: Mapping[str, Numbers], resamples: int) -> ByMetric:
    """Return the difference of each metric of a part vs. a baseline's predictions."""
    _, labels, groups = collect_predictions(part.scoring, part.outcome)
    differences = ByMetric()
    for name, predicted in _predict(part.scoring, part.outcome).items():
        other = baseline[name]
        own_scores = scores.score([name], predicted, labels, groups)
        other_scores = scores.score([name], other, labels, groups)
        low, high = scores.difference(
            name,
            predicted,
            other,
            labels,
            resamples,
            groups,
        )
        other_score = other_scores[name]
        differences[name] = Difference(
            baseline=other_score,
            mean=own_scores[name] - other_score,
            low=low,
            high=high,
        )
    return differences


def _by_name(baseline: str, each: Sequence[ByMetric]) -> Scores:
    """Return the mean differences of parts, with their intervals, by names of metrics."""
    metrics = Scores()
    for name in each[0]:
        of_parts = [differences[name] for differences in each]
        _, means, lows, highs = np.array(of_parts).T
        key = f"{name}_over_{baseline}"
        metrics[key] = float(means.mean())
        metrics |= name_interval(key, scores.interval_of_mean(means, lows, highs))
    return metrics
