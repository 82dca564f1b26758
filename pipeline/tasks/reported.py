"""Further metrics to report in addition to an entry's: errors in the label's units, and areas under curves.

None of them selects a checkpoint. Multi-tenant tasks, whose scores are means, and multiple choice have none.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pipeline.tasks import scores
from pipeline.tasks.scoring import collect_predictions
from pipeline.tasks.task import Numbers, Outcome, Scores, Task

ERRORS = ("rmse", "mae")
AREAS = ("roc_auc", "average_precision")
Line = tuple[str, str]


def report(task: Task, outcome: Outcome, resamples: int) -> Scores:
    """Return the errors of numbers, or the areas of two classes or of labels, each with its 95 % interval.

    An error has a baseline: the best constant's. The area of multi-label is the mean over the labels that some texts
    have and others have not. Numbers are (examples,), and areas are made of the difference of two logits.
    """
    if task.row.tenant is not None or task.row.choices or task.head.generates:
        return {}
    if not task.head.has_probabilities:
        return _errors(task, outcome, resamples)
    parts = task.head.collect_logits(outcome)
    if parts[0].logits.shape[1] > 2:
        return {}
    leads = [part.logits[:, 1].astype(np.float64) - part.logits[:, 0] for part in parts]
    labels = [part.classes for part in parts]
    groups = outcome.groups if task.row.group else None
    return _measure(AREAS, np.stack(leads, axis=1), np.stack(labels, axis=1), resamples, groups)


def _errors(task: Task, outcome: Outcome, resamples: int) -> Scores:
    predicted, labels, groups = collect_predictions(task.scoring, outcome)
    metrics = _measure(ERRORS, predicted.astype(np.float64), labels, resamples, groups)
    metrics["rmse_baseline"] = float(labels.std())
    metrics["mae_baseline"] = float(np.abs(labels - np.median(labels)).mean())
    return metrics


def _measure(names: Iterable[str], values: Numbers, labels: Numbers, resamples: int, groups: Any) -> Scores:
    metrics = Scores()
    for name in names:
        low, high = scores.interval(name, values, labels, resamples, groups)
        metrics[name] = float(scores.EXAMPLES[name](labels, values))
        metrics[f"{name}_low"] = low
        metrics[f"{name}_high"] = high
    return metrics


def describe(metrics: Mapping[str, Any]) -> Iterable[Line]:
    """Yield a line for the last screen for each of these metrics, and for the calibration error."""
    for name in (*ERRORS, *AREAS, "ece", "brier"):
        if name not in metrics:
            continue
        line = f"{metrics[name]:.4g}, 95 % interval {metrics[f'{name}_low']:.4g} to {metrics[f'{name}_high']:.4g}"
        if f"{name}_baseline" in metrics:
            line += f"; {metrics[f'{name}_baseline']:.4g} for one answer to all"
        if f"uncalibrated_{name}" in metrics:
            line += f"; {metrics[f'uncalibrated_{name}']:.4g} before calibration"
        yield name.replace("average_precision", "avg. prec."), line
