"""A budget goes where the largest singular values are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lsr.init.allocation import allocate
from tests.lsr.matrices import normal

SHAPES = {"query": (5, 4), "value": (3, 7), "dense": (6, 6)}


def gradients(seed):
    return {name: 10.0**-i * normal(*shape, seed=seed + i) for i, (name, shape) in enumerate(SHAPES.items())}


@given(st.integers(1, 13), st.integers(0, 999))
def test_a_layer_gets_as_many_directions_as_it_has_of_the_largest_singular_values(budget, seed):
    values = {name: torch.linalg.svdvals(matrix) for name, matrix in gradients(seed).items()}
    least = torch.cat(list(values.values())).sort(descending=True).values[budget - 1] * (1 - 1e-9)
    expected = {name: int((of_layer >= least).sum()) for name, of_layer in values.items()}
    assert allocate(gradients(seed), budget) == {name: count for name, count in expected.items() if count}


@pytest.mark.parametrize("budget", [0, 14])
def test_a_budget_that_the_layers_cannot_hold_is_refused(budget):
    with pytest.raises(ValueError, match=r"^the budget must be in \[1, 13\], at most 64 directions per layer, got"):
        allocate(gradients(0), budget)
