"""Thresholds of probabilities, of which a validation split chooses the best."""

import numpy as np

from pipeline.tasks.task import Numbers

TRIED = np.arange(1, 100) / 100


def choose_best(scores: Numbers) -> float:  # (thresholds,), of TRIED
    """Return the threshold with the best score: the middle one of ties."""
    is_best = scores == scores.max()
    best = TRIED[is_best]
    middle = (len(best) - 1) // 2
    return float(best[middle])
