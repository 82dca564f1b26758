import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from lsr.algebra import spectrum
from lsr.algebra.spectrum import (
    distance_of_pairs,
    leading_part,
    leading_row_space,
    singular_values_of_pair,
)
from tests.lsr.matrices import decaying, normal


@given(st.integers(1, 8), st.integers(1, 8), st.data())
def test_the_leading_rows_are_orthonormal_and_hold_the_largest_energy(rows, columns, data):
    rank = data.draw(st.integers(1, min(rows, columns)))
    weight = normal(rows, columns, seed=rows)
    leading = leading_row_space(weight, rank)
    assert_close(leading @ leading.T, torch.eye(rank, dtype=torch.float64))
    assert_close((weight @ leading.T).norm(), torch.linalg.svdvals(weight)[:rank].norm())


def test_the_largest_entry_of_each_leading_row_is_positive():
    leading = leading_row_space(normal(12, 9), 5)
    assert (leading.gather(1, leading.abs().argmax(dim=1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("shape", [(40, 30), (30, 40)])
def test_the_randomised_svd_of_a_wide_weight_finds_the_same_rows(monkeypatch, shape):
    weight = decaying(*shape)
    full = leading_row_space(weight, 4)
    monkeypatch.setattr(spectrum, "LARGE", 1)
    assert_close(leading_row_space(weight, 4), full, atol=1e-6, rtol=0)


def test_the_randomised_svd_is_another_way_than_the_full_one(monkeypatch):
    weight = normal(80, 80)
    full = leading_row_space(weight, 4)
    monkeypatch.setattr(spectrum, "LARGE", 1)
    assert not torch.equal(leading_row_space(weight, 4), full)


def test_the_randomised_svd_gives_the_same_bytes_and_leaves_numpys_random_numbers_alone(monkeypatch):
    monkeypatch.setattr(spectrum, "LARGE", 1)
    state = np.random.get_state()[1].copy()
    one, two = (leading_row_space(normal(40, 30), 4, seed=3).numpy().tobytes() for _ in range(2))
    assert one == two
    assert np.array_equal(np.random.get_state()[1], state)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_weight_without_singular_vectors_is_refused_with_its_largest_entry(value):
    weight = torch.zeros(8, 8)
    weight[3, 4] = value
    with pytest.raises(ValueError, match=f"no row space to start from: its largest entry is {value}"):
        leading_row_space(weight, 4)


@pytest.mark.parametrize("shape", [(3, 8), (8, 3)])
def test_a_rank_beyond_the_weight_is_refused_with_the_bounds(shape):
    message = f"the rank must be in [1, 3] for a weight {shape}, got 4"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        leading_row_space(normal(*shape), 4)


# Parts of the spectrum


@given(st.integers(1, 8), st.integers(1, 8), st.data())
def test_the_leading_part_is_the_nearest_matrix_of_its_rank(rows, columns, data):
    rank = data.draw(st.integers(1, min(rows, columns)))
    weight = normal(rows, columns, seed=rows)
    left, right = leading_part(weight, rank)
    assert_close((weight - left @ right).norm(), torch.linalg.svdvals(weight)[rank:].norm(), atol=1e-12, rtol=1e-9)
    assert_close(left.norm(dim=0), right.norm(dim=1))


@pytest.mark.parametrize("shape", [(12, 9), (9, 12)])
def test_the_signs_of_a_part_do_not_depend_on_that_of_the_weight(shape):
    weight = decaying(*shape)
    _, right = leading_part(weight, 4)
    assert_close(leading_part(-weight, 4)[1], right, atol=1e-8, rtol=0)
    assert (right.gather(1, right.abs().argmax(dim=1, keepdim=True)) > 0).all()


# Products that are not formed


@pytest.mark.parametrize("inner", [1, 3, 30])
def test_the_singular_values_of_a_pair_are_those_of_its_product(inner):
    left, right = normal(12, inner), normal(inner, 9, seed=1)
    count = min(inner, 9)
    expected = torch.linalg.svdvals(left @ right)
    assert_close(singular_values_of_pair(left, right)[:count], expected[:count])
    assert float(singular_values_of_pair(left, right).norm()) == pytest.approx(float((left @ right).norm()))


@pytest.mark.parametrize("inner", [1, 4, 20])
def test_the_distance_of_pairs_is_that_of_their_products(inner):
    one, other = (normal(12, 3), normal(3, 9, seed=1)), (normal(12, inner, seed=2), normal(inner, 9, seed=3))
    expected = float((one[0] @ one[1] - other[0] @ other[1]).norm())
    assert distance_of_pairs(one, other) == pytest.approx(expected, rel=1e-12)
    assert distance_of_pairs(one, one) < 1e-13 * expected
