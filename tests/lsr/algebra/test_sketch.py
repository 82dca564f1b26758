import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from lsr.algebra.sketch import Sketch
from tests.lsr.matrices import decaying, normal


def of_rank(rows, columns, rank, seed=0):
    return normal(rows, rank, seed=seed) @ normal(rank, columns, seed=seed + 1)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 5), st.data())
def test_a_sum_of_low_rank_is_recovered(rows, columns, rank, data):
    parts = data.draw(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([1, 2, 8])), min_size=1, max_size=3))
    limit = 2 * rank + 1  # what it keeps
    sketch, total = Sketch((rows, columns), rank, seed=3), torch.zeros(rows, columns, dtype=torch.float64)
    for seed, times in parts:
        matrix = of_rank(rows, columns, limit // len(parts), seed)
        sketch.add(matrix, times)
        total += times * matrix
    left, right = sketch.pair()
    assert left.shape[1] == min(limit, rows, columns)
    assert_close(left.T @ left, torch.eye(left.shape[1], dtype=torch.float64))
    assert_close(left @ right, total, rtol=1e-6, atol=1e-8 * float(total.norm()))


@pytest.mark.parametrize("shape", [(90, 60), (60, 90)])
def test_the_error_is_about_that_of_the_best_approximation_of_the_rank(shape):
    matrix, rank = decaying(*shape), 6
    best = float(torch.linalg.svdvals(matrix)[rank:].norm())
    errors = []
    for seed in range(20):
        sketch = Sketch(shape, rank, seed)
        sketch.add(matrix)
        left, right = sketch.pair()
        errors.append(float((left @ right - matrix).square().sum()))
    assert sum(errors) / len(errors) < 4 * best**2  # the bound of the expectation


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_value_that_is_not_finite_is_noticed(value):
    sketch = Sketch((5, 4), 1)
    sketch.add(normal(5, 4))
    assert sketch.is_finite()
    sketch.add(torch.full((5, 4), value))
    assert not sketch.is_finite()
