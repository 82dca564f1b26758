"""Ranks over tasks: Friedman's test, and the distance from which on two mean ranks differ (Nemenyi).

Reference: Demšar, "Statistical comparisons of classifiers over multiple data sets", JMLR 7, 2006.
"""

from collections.abc import Mapping
from math import inf, sqrt
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.05
FEWEST_METHODS, FEWEST_TASKS = 3, 2  # that Friedman's test makes sense of


class Ranking(NamedTuple):
    """Mean ranks of the methods that every task has a score of: 1 is the best."""

    ranks: dict[str, float]  # from the best on
    critical_difference: float
    p: float  # of Friedman's test, that all methods are alike
    tasks: int


def rank(scores: Mapping[str, Mapping[str, float]]) -> Ranking | None:
    """Return the ranks of methods by their mean scores, by task and method; None where there are too few of either."""
    shared = sorted(set.intersection(*(set(row) for row in scores.values()))) if scores else []
    if len(shared) < FEWEST_METHODS or len(scores) < FEWEST_TASKS:
        return None
    table = np.array([[row[method] for method in shared] for row in scores.values()])  # (tasks, methods)
    means = stats.rankdata(-table, axis=1).mean(axis=0)
    tasks, methods = table.shape
    critical = stats.studentized_range.ppf(1 - LEVEL, methods, inf) / sqrt(2)
    alike = not np.ptp(table, axis=1).any()  # which the test does not take
    p = 1.0 if alike else float(stats.friedmanchisquare(*table.T).pvalue)
    order = sorted(range(methods), key=lambda place: (means[place], shared[place]))
    ranks = {shared[place]: float(means[place]) for place in order}
    return Ranking(ranks, float(critical) * sqrt(methods * (methods + 1) / (6 * tasks)), p, tasks)
