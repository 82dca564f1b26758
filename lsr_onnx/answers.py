"""The answer of a classifier or a regression to one text, computed from its logits without torch."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lsr_onnx.names import make_label_names

Labels = tuple[str, ...] | None  # names of labels in the order of a head's rows; None for regression


class Answer(NamedTuple):
    """The result of one row: a logit per label, or a single number if `labels` is None."""

    adapter: str
    labels: Labels
    logits: Any  # (labels,), or (1,): an array of numpy, or a tensor of torch
    thresholds: tuple[float, ...] | None = None  # multi-label tasks: the probability from which each label applies
    threshold: float | None = None  # the probability of the second of two labels from which it is the answer

    @property
    def probabilities(self) -> dict[str, float]:
        """The probability of each label; they add up to 1 unless the task is multi-label. Empty for regression."""
        logits = np.array(self.logits.tolist(), dtype=np.float64)
        shares = _softmax(logits) if self.thresholds is None else _sigmoid(logits)
        labels = self.labels or ()
        return dict(zip(labels, shares.tolist(), strict=False))

    @property
    def label(self) -> str:
        """The likeliest label; of two with a threshold, the second one if its probability reaches that."""
        probabilities = self.probabilities
        if self.threshold is None:
            return max(probabilities, key=lambda label: probabilities[label])
        assert self.labels is not None
        first, second = self.labels
        if probabilities[second] >= self.threshold:
            return second
        return first

    @property
    def applying(self) -> list[str]:
        """Multi-label tasks: the labels whose probabilities reach their thresholds."""
        thresholds = self.thresholds or ()
        labels = []
        for (label, share), threshold in zip(self.probabilities.items(), thresholds, strict=False):
            if share >= threshold:
                labels.append(label)
        return labels


def make_answer(
    name: str,
    task_info: Mapping[str, Any],
    logits: Any,
) -> Answer:
    """Return the answer of an adapter, which has this task info and computed the logits (labels,)."""
    count = len(logits)
    thresholds = task_info.get("thresholds") or ()
    if count == 1 and not thresholds:
        return Answer(name, None, logits)
    names = task_info.get("labels") or make_label_names(count)
    threshold = None
    if count == 2:
        threshold = task_info.get("threshold")
    return Answer(
        name,
        tuple(names),
        logits,
        tuple(thresholds) or None,
        threshold,
    )


def _softmax(logits: np.ndarray) -> np.ndarray:
    largest = logits.max()
    weights = np.exp(logits - largest)
    return weights / weights.sum()


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    negative = np.logaddexp(0, -logits)
    return np.exp(-negative)
