"""Means over seeds with confidence intervals; Holm's correction of several p-values."""

from collections.abc import Sequence
from statistics import fmean

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
PERCENT = 100.0


def estimate(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """Return a mean over seeds by its name, and the ends of its 95 % interval by Student's t as `name_low` and `_high`.

    They are mean ± t · std / √n with t of n - 1 degrees of freedom. One seed has no interval, none has no mean.
    """
    mean, low, high = fmean(values) if values else None, None, None
    if mean is not None and len(values) > 1:
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values))
        low, high = mean - half, mean + half
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


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
