"""A budget goes where the largest singular values are, of one data set or of several beside each other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lsr.init.allocation import allocate
from tests.lsr.matrices import normal

SHAPES = {"query": (5, 4), "value": (3, 7), "dense": (6, 6)}


def gradients(seed):
    return {name: 10.0**-i * normal(*shape, seed=seed + i) for i, (name, shape) in enumerate(SHAPES.items())}


@given(st.integers(1, 13), st.lists(st.integers(0, 999), min_size=1, max_size=3))
def test_a_layer_gets_as_many_directions_as_it_has_of_the_largest_singular_values(budget, seeds):
    listed = [gradients(seed) for seed in seeds]
    norms = [torch.cat([matrix.flatten() for matrix in one.values()]).norm() for one in listed]
    beside = {
        name: torch.cat([one[name] / norm for one, norm in zip(listed, norms, strict=True)], 1) for name in SHAPES
    }
    values = {name: torch.linalg.svdvals(matrix)[: min(SHAPES[name])] for name, matrix in beside.items()}
    least = torch.cat(list(values.values())).sort(descending=True).values[budget - 1] * (1 - 1e-9)
    expected = {name: int((of_layer >= least).sum()) for name, of_layer in values.items()}
    assert allocate(listed, budget) == {name: count for name, count in expected.items() if count}


@pytest.mark.parametrize("budget", [0, 14])
def test_a_budget_that_the_layers_cannot_hold_is_refused(budget):
    with pytest.raises(ValueError, match=r"^the budget must be in \[1, 13\], at most 64 directions per layer, got"):
        allocate([gradients(0)], budget)
