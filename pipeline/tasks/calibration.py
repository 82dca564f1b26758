"""Calibrate probabilities by temperatures that divide logits.

Reference: Guo et al., "On Calibration of Modern Neural Networks", 2017, https://arxiv.org/abs/1706.04599.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lsr_onnx.task import MAX_TEMPERATURE, MIN_TEMPERATURE
from pipeline.tasks.task import Numbers

# Labels or tenants with fewer texts in the validation split share a temperature:
MIN_TEXTS = 100
MIN_TEXTS_OF_CLASS = 10
DIGITS = 4  # digits of a temperature; further ones differ between processors


class Classified(NamedTuple):
    """Logits and classes of examples."""

    logits: Numbers  # (examples, classes)
    classes: Numbers  # (examples,)
    is_label: bool = False  # it is one label of several, which applies, class 1, or not

    @property
    def has_few(self) -> bool:
        """Whether there are too few examples for a temperature of its own."""
        counts = np.bincount(self.classes, minlength=self.logits.shape[1])
        return len(self.classes) < MIN_TEXTS or counts.min() < MIN_TEXTS_OF_CLASS


def as_binary(logits: Numbers, applies: Numbers) -> Classified:
    """Convert the logits (examples,) of a label to logits of two classes."""
    zeros = np.zeros_like(logits)
    return Classified(np.stack([zeros, logits], axis=1), applies.astype(np.int64), is_label=True)


def fit_temperature(parts: Sequence[Classified]) -> float:
    """Return the temperature with the lowest cross-entropy of all examples; 1 without examples.

    Parts may differ in their classes. Each target is smoothed as if one more example had each class in equal shares, so
    that examples without a mistake have a finite temperature, too (Platt, "Probabilistic Outputs for Support Vector
    Machines", 1999, smooths likewise).
    The cross-entropy is convex in the inverse of the temperature, so the slope has one root. It is found in float64.
    """
    from scipy.optimize import brentq

    count = sum(len(part.classes) for part in parts)
    if not count:
        return 1.0
    smoothing = 1 / (count + 1)
    doubles = [Classified(part.logits.astype(np.float64), part.classes) for part in parts]

    def slope(inverse: float) -> float:
        slopes = [_slope(part, inverse, smoothing) for part in doubles]
        return sum(slopes)

    low = 1 / MAX_TEMPERATURE
    high = 1 / MIN_TEMPERATURE
    if slope(low) >= 0:
        return MAX_TEMPERATURE
    if slope(high) <= 0:
        return MIN_TEMPERATURE
    inverse = brentq(slope, low, high)
    return float(f"{1 / inverse:.{DIGITS}g}")


def _slope(part: Classified, inverse: float, smoothing: float) -> float:
    """Return the derivative of the sum of cross-entropies by the inverse of the temperature."""
    from scipy.special import softmax

    logits = part.logits
    examples = np.arange(len(logits))
    targets = np.full(logits.shape, smoothing / logits.shape[1])
    targets[examples, part.classes] += 1 - smoothing
    probabilities = softmax(inverse * logits, axis=1)
    return float(((probabilities - targets) * logits).sum())


def fit_temperatures(parts: Sequence[Classified]) -> tuple[float, ...]:
    """Return the temperature per part; parts with few examples, in total or of a class, share one."""
    shared = fit_temperature([part for part in parts if part.has_few])
    temperatures = list[float]()
    for part in parts:
        own = shared if part.has_few else fit_temperature([part])
        temperatures.append(own)
    return tuple(temperatures)
