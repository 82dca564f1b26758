"""Ranks over tasks, against ranks by hand and the critical values of the paper that they are from."""

from math import sqrt

import numpy as np
import pytest
from scipy import stats

from pipeline.compare.ranking import rank

SCORES = {
    "one": {"a": 0.9, "b": 0.8, "c": 0.8, "d": 0.1},
    "two": {"a": 0.7, "b": 0.9, "c": 0.6, "d": 0.5},
    "three": {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6},
}


def test_ties_share_the_mean_of_their_ranks():
    found = rank(SCORES)
    assert found.ranks == pytest.approx({"a": 4 / 3, "b": (2.5 + 1 + 2) / 3, "c": (2.5 + 3 + 3) / 3, "d": 4})
    assert list(found.ranks) == ["a", "b", "c", "d"]
    assert found.tasks == 3
    columns = np.array([list(row.values()) for row in SCORES.values()]).T
    assert found.p == pytest.approx(stats.friedmanchisquare(*columns).pvalue)


@pytest.mark.parametrize(("methods", "value"), [(3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_the_critical_difference_is_of_the_published_values(methods, value):
    # Demšar 2006, table 5(a), two-tailed Nemenyi test at 0.05
    scores = {f"set {n}": {f"m{m}": float((n * m) % 7) for m in range(methods)} for n in range(14)}
    assert rank(scores).critical_difference == pytest.approx(value * sqrt(methods * (methods + 1) / (6 * 14)), rel=1e-3)


def test_a_method_that_lacks_a_task_has_no_rank():
    scores = SCORES | {"four": {"b": 0.1, "c": 0.2, "d": 0.3}}
    assert set(rank(scores).ranks) == {"b", "c", "d"}


def test_too_few_methods_or_tasks_have_no_ranks():
    assert rank({}) is None
    assert rank({"one": SCORES["one"]}) is None
    assert rank({"one": {"a": 1.0, "b": 2.0}, "two": {"a": 1.0, "b": 2.0}}) is None


def test_methods_that_are_all_alike_do_not_differ():
    found = rank({name: {"a": 1.0, "b": 1.0, "c": 1.0} for name in ("one", "two")})
    assert set(found.ranks.values()) == {2.0}
    assert found.p == 1.0
