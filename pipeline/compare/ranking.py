"""Ranks over tasks: Friedman's test, and the critical difference of two mean ranks (Nemenyi).

Reference: Demšar, "Statistical comparisons of classifiers over multiple data sets", JMLR 7, 2006.
"""

from collections.abc import Mapping
from math import inf, sqrt
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.05
FEWEST_METHODS, FEWEST_TASKS = 3, 2  # for which Friedman's test makes sense


class Ranking(NamedTuple):
    """Mean ranks of the methods that have a score on every task; 1 is the best."""

    ranks: dict[str, float]  # best first
    critical_difference: float
    p: float  # of Friedman's test of the hypothesis that all methods are equal
    tasks: int


def rank(scores: Mapping[str, Mapping[str, float]]) -> Ranking | None:
    """Return the ranks of methods, given mean scores by task and method; None if there are too few of either."""
    shared = sorted(set.intersection(*(set(row) for row in scores.values()))) if scores else []
    if len(shared) < FEWEST_METHODS or len(scores) < FEWEST_TASKS:
        return None
    table = np.array([[row[method] for method in shared] for row in scores.values()])  # (tasks, methods)
    means = stats.rankdata(-table, axis=1).mean(axis=0)
    tasks, methods = table.shape
    critical = stats.studentized_range.ppf(1 - LEVEL, methods, inf) / sqrt(2)
    alike = not np.ptp(table, axis=1).any()  # which the test cannot handle
    p = 1.0 if alike else float(stats.friedmanchisquare(*table.T).pvalue)
    order = sorted(range(methods), key=lambda place: (means[place], shared[place]))
    ranks = {shared[place]: float(means[place]) for place in order}
    return Ranking(ranks, float(critical) * sqrt(methods * (methods + 1) / (6 * tasks)), p, tasks)
