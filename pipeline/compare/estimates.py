"""Means over seeds with confidence intervals; Holm's correction of several p-values."""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
PERCENT = 100.0


class Estimate(NamedTuple):
    """A mean over seeds and its 95 % interval, by Student's t. One seed has no interval, none has no mean."""

    mean: float | None = None
    low: float | None = None
    high: float | None = None


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean, and mean ± t · std / √n with t of n - 1 degrees of freedom."""
    if len(values) < 2:
        return Estimate(*values)
    mean = fmean(values)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values))
    return Estimate(mean, mean - half, mean + half)


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in the same order.

    scipy corrects only for false discoveries, and statsmodels would be a large package for three lines.

    Reference: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(np.asarray(values)[order] * np.arange(len(values), 0, -1))
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(steps, 1.0)
    return [float(value) for value in corrected]
