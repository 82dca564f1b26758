"""Evaluate probabilities: calibration error, Brier score, and the tables of two plots."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import softmax

from pipeline.tasks import scores
from pipeline.tasks.calibration import Classified
from pipeline.tasks.sums import BINS, bins_of
from pipeline.tasks.task import Groups, Numbers, Outcome, Scores, Task

RELIABILITY = ("probability", "frequency", "answers", "head")
COVERAGE = ("coverage", "accuracy", "min_probability")
POINTS = 100  # points of the coverage curve
METRICS = ("ece", "brier")
UNCALIBRATED = "uncalibrated"

Cells = tuple[float | str, ...]


class Judged(NamedTuple):
    """Probabilities of answers, and their correctness."""

    probabilities: Numbers  # (texts,) of the likeliest class, or (texts, labels)
    is_right: Numbers  # the same shape: whether it is right, or the label applies
    squares: Numbers  # (texts,): Brier scores

    @property
    def values(self) -> dict[str, Numbers]:
        """The predictions from which each of METRICS is computed, by its name; `is_right` are the labels."""
        return {"ece": self.probabilities, "brier": self.squares}


class Report(NamedTuple):
    """The report of a stage about probabilities."""

    metrics: Scores
    reliability: list[Cells]  # rows of RELIABILITY
    coverage: list[Cells]  # rows of COVERAGE


def report(task: Task, outcome: Outcome, resamples: int) -> Report:
    """Return calibration errors with 95 % intervals, also without temperatures; empty without probabilities.

    The expected calibration error (ece) is the mean distance between probability and frequency in BINS bins of equal
    width (Guo et al., 2017), of the likeliest class or, for multi-label tasks, of each label. Noise makes it larger,
    for which its interval corrects: it covers the error of all such texts in some 90 % of cases, but that of perfect
    probabilities, 0, in two of three. The Brier score is scikit-learn's; for multi-label tasks, the mean over labels.
    """
    if not task.head.has_probabilities:
        return Report({}, [], [])
    parts = task.head.collect_logits(outcome)
    once = [1.0] * len(parts)
    judged = judge(parts, once)
    before = judge(parts, task.facts.temperatures or once)
    in_groups = task.entry.group or task.entry.choices
    groups = outcome.groups if in_groups else None
    metrics = _measure(judged, "", resamples, groups)
    metrics |= _measure(before, f"{UNCALIBRATED}_", resamples, groups)
    reliability = [*list_bins(judged, "calibrated"), *list_bins(before, UNCALIBRATED)]
    answers = judge_answers(task, outcome, judged)
    return Report(metrics, reliability, list(list_coverage(answers)))


def _measure(judged: Judged, prefix: str, resamples: int, groups: Groups) -> Scores:
    """Return METRICS with their intervals, their names after a prefix."""
    metrics = Scores()
    right = judged.is_right
    for metric, values in judged.values.items():
        metrics |= scores.score_with_intervals([metric], values, right, groups, resamples, prefix)
    return metrics


def judge(parts: Sequence[Classified], temperatures: Sequence[float]) -> Judged:
    """Return the probabilities of logits times temperatures: labels stacked as columns, other parts concatenated."""
    judged = list[Judged]()
    for part, temperature in zip(parts, temperatures, strict=True):
        judged.append(_judge_part(part, temperature))
    probabilities, is_right, squares = zip(*judged, strict=True)
    if parts[0].is_label:
        return Judged(
            np.stack(probabilities, axis=1),
            np.stack(is_right, axis=1),
            np.mean(squares, axis=0),
        )
    return Judged(
        np.concatenate(probabilities),
        np.concatenate(is_right),
        np.concatenate(squares),
    )


def judge_answers(task: Task, outcome: Outcome, judged: Judged) -> Judged:
    """Return the probabilities of the answers: with a tuned threshold, an answer need not be the likeliest class."""
    if task.facts.thresholds is None or task.scoring.has_thresholds:
        return judged
    answers = task.scoring.predict(outcome)
    shares = softmax(outcome.outputs.numpy().astype(np.float64), axis=1)
    examples = np.arange(len(answers))
    is_right = (answers == outcome.labels).astype(np.int64)
    return judged._replace(probabilities=shares[examples, answers], is_right=is_right)


def _judge_part(part: Classified, temperature: float) -> Judged:
    logits = part.logits.astype(np.float64)
    shares = softmax(temperature * logits, axis=1)
    count = shares.shape[1]
    flags = np.eye(count)
    distances = shares - flags[part.classes]
    squares = (distances**2).sum(axis=1)
    if count == 2:  # scikit-learn has the squares of one of two classes, and the sum over more
        squares /= 2
    if part.is_label:
        return Judged(shares[:, 1], part.classes, squares)
    is_right = shares.argmax(axis=1) == part.classes
    return Judged(shares.max(axis=1), is_right.astype(np.int64), squares)


def list_bins(judged: Judged, head: str) -> Iterator[Cells]:
    """Yield mean probability, frequency and number of answers for each non-empty bin."""
    probabilities = judged.probabilities.ravel()
    is_right = judged.is_right.ravel()
    numbers = bins_of(probabilities)
    for number in range(BINS):
        inside = numbers == number
        count = int(inside.sum())
        if count:
            mean = float(probabilities[inside].mean())
            frequency = float(is_right[inside].mean())
            yield mean, frequency, count, head


def list_coverage(judged: Judged) -> Iterator[Cells]:
    """Yield coverage, accuracy and threshold if answers need a probability, from the highest threshold on.

    Multi-label tasks have no single answer that could be left out.
    """
    probabilities = judged.probabilities
    if probabilities.ndim > 1:
        return
    count = len(probabilities)
    ascending = np.sort(probabilities)
    points = min(count, POINTS)
    places = np.linspace(0, count - 1, points).astype(int)
    limits = np.unique(ascending[places])
    for least in limits[::-1]:
        answered = probabilities >= least
        share = float(answered.mean())
        accuracy = float(judged.is_right[answered].mean())
        yield share, accuracy, float(least)
