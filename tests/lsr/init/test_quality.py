import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lsr.algebra.spectrum import leading_row_space
from lsr.init.quality import (
    captured_by_lora,
    captured_by_rows,
    captured_by_svd,
    captured_by_update,
)
from tests.lsr.matrices import decaying, normal


def test_rows_that_span_everything_capture_everything():
    weight = normal(10, 8)
    captured = captured_by_rows(weight, leading_row_space(weight, 4), normal(8, 8, seed=1))
    assert (captured.overlap, captured.energy) == (pytest.approx(1), pytest.approx(1))


def test_rows_that_are_orthogonal_to_the_leading_ones_overlap_with_none():
    weight = decaying(8, 8)
    rows = leading_row_space(weight, 8)
    captured = captured_by_rows(weight, rows[:4], rows[4:])
    assert captured.overlap == pytest.approx(0, abs=1e-12)
    assert 0 < captured.energy < 0.5


@given(st.integers(1, 7))
def test_more_rows_never_capture_less(count):
    weight, rows = normal(10, 8), normal(8, 8, seed=1)
    leading = leading_row_space(weight, 4)
    fewer, more = (captured_by_rows(weight, leading, rows[:size]) for size in (count, count + 1))
    assert fewer.overlap <= more.overlap + 1e-12
    assert fewer.energy <= more.energy + 1e-12


def test_storing_as_many_parameters_as_the_weight_captures_everything():
    captured = captured_by_svd(normal(10, 8), 4, 64)
    assert (captured.overlap, captured.energy) == (1.0, pytest.approx(1))


def test_storing_more_parameters_than_the_weight_has_captures_no_more_than_everything():
    captured = captured_by_svd(normal(10, 8), 4, 6400)
    assert (captured.overlap, captured.energy) == (1.0, pytest.approx(1))


@given(st.integers(0, 79))
def test_one_more_stored_parameter_never_captures_less(stored):
    weight = normal(10, 8)
    fewer, more = captured_by_svd(weight, 4, stored), captured_by_svd(weight, 4, stored + 1)
    assert fewer.overlap <= more.overlap
    assert fewer.energy <= more.energy + 1e-12


@pytest.mark.parametrize("vectors", range(1, 5))
def test_both_measures_agree_where_the_rows_are_the_leading_singular_vectors(vectors):
    weight = normal(10, 8)
    by_rows = captured_by_rows(weight, leading_row_space(weight, 4), leading_row_space(weight, vectors))
    by_svd = captured_by_svd(weight, 4, vectors * 8)
    assert by_rows.overlap == pytest.approx(by_svd.overlap)
    assert by_rows.energy == pytest.approx(by_svd.energy)


def test_half_a_stored_vector_counts_half():
    weight = normal(10, 8)
    one, half, two = (captured_by_svd(weight, 4, stored) for stored in (8, 12, 16))
    assert half.overlap == pytest.approx((one.overlap + two.overlap) / 2)
    assert half.energy == pytest.approx((one.energy + two.energy) / 2)


# Updates


@given(st.integers(1, 7))
def test_the_best_lora_captures_what_the_truncated_svd_does(rank):
    weight = normal(10, 8)
    u, values, v = torch.linalg.svd(weight, full_matrices=False)
    nearest = (u[:, :rank] * values[:rank]) @ v[:rank]
    assert captured_by_lora(weight, rank * 18) == pytest.approx(captured_by_update(weight, nearest))


def test_a_lora_as_large_as_the_weight_captures_everything():
    assert captured_by_lora(normal(10, 8), 8 * 18) == pytest.approx(1)
    assert captured_by_lora(normal(10, 8), 9999) == 1


def test_the_weight_itself_captures_everything_and_zero_nothing():
    weight = normal(10, 8)
    assert captured_by_update(weight, weight) == pytest.approx(1)
    assert captured_by_update(weight, torch.zeros(10, 8)) == pytest.approx(0)
    assert captured_by_update(weight, -weight) == pytest.approx(-3)
