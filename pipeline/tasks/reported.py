"""Further metrics to report in addition to an entry's: errors in the label's units, and areas under curves.

None of them selects a checkpoint. Multi-tenant tasks, whose scores are means, and multiple choice have none.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pipeline.tasks import scores
from pipeline.tasks.description import Line
from pipeline.tasks.scoring import collect_predictions
from pipeline.tasks.task import Numbers, Outcome, Scores, Task, interval_of

ERRORS = ("rmse", "mae")
AREAS = ("roc_auc", "average_precision")
ADVICE = "train longer, or raise train.head_learning_rate"
LINES = {"errors": ERRORS, "areas": AREAS, "calibration": ("ece", "brier")}  # metrics by line of the last screen
NAMES = {
    "rmse": "RMSE",
    "mae": "MAE",
    "roc_auc": "ROC-AUC",
    "average_precision": "average precision",
    "ece": "ECE",
    "brier": "Brier",
}
OTHERS = {"{}_baseline": "constant", "uncalibrated_{}": "before"}  # other values of a metric, by key


def report(task: Task, outcome: Outcome, resamples: int) -> Scores:
    """Return the errors of numbers, or the areas of two classes or of labels, each with its 95 % interval.

    An error has a baseline: the best constant's. The area of multi-label is the mean over the labels that some texts
    have and others have not; there is none without such a label. Numbers are (examples,), and areas are made of the
    difference of two logits.
    """
    entry = task.entry
    head = task.head
    if entry.tenant is not None or entry.choices or head.generates:
        return {}
    if not head.has_probabilities:
        return _errors(task, outcome, resamples)
    parts = head.collect_logits(outcome)
    classes = parts[0].logits.shape[1]
    if classes > 2:
        return {}
    leads = list[Numbers]()
    labels = list[Numbers]()
    for part in parts:
        logits = part.logits.astype(np.float64)
        first, second = logits.T
        leads.append(second - first)
        labels.append(part.classes)
    groups = outcome.groups if entry.group else None
    values = np.stack(leads, axis=1)
    actual = np.stack(labels, axis=1)
    if not np.ptp(actual, axis=0).any():  # no area is defined
        return {}
    return scores.score_with_intervals(AREAS, values, actual, groups, resamples)


def _errors(
    task: Task,
    outcome: Outcome,
    resamples: int,
) -> Scores:
    predicted, labels, groups = collect_predictions(task.scoring, outcome)
    values = predicted.astype(np.float64)
    metrics = scores.score_with_intervals(ERRORS, values, labels, groups, resamples)
    median = np.median(labels)
    distances = np.abs(labels - median)
    metrics["rmse_baseline"] = float(labels.std())
    metrics["mae_baseline"] = float(distances.mean())
    return metrics


def describe(metrics: Mapping[str, Any], unit: str) -> Iterable[Line]:
    """Yield a line for the last screen for each group of these metrics, and for those of probabilities.

    `unit` is that of errors.
    """
    for heading, names in LINES.items():
        known = [name for name in names if name in metrics]
        parts = [_describe_metric(name, metrics) for name in known]
        if parts:
            line = ", ".join(parts)
            yield heading, f"{line}, in units of {unit}" if names == ERRORS else line
    if "rmse_baseline" in metrics and metrics["rmse_low"] > metrics["rmse_baseline"]:
        yield "mean", f"the mean of {unit} has smaller errors than the predictions; {ADVICE}"


def _describe_metric(name: str, metrics: Mapping[str, Any]) -> str:
    """Return a metric with its 95 % interval and its other values, to three digits."""
    low, high = interval_of(name, metrics)
    value = metrics[name]
    shown = NAMES.get(name, name)
    line = f"{shown} {value:.3g} ({low:.3g} to {high:.3g}"
    for pattern, label in OTHERS.items():
        key = pattern.format(name)
        other = metrics.get(key)
        if other is not None:
            line += f"; {label} {other:.3g}"
    return f"{line})"
