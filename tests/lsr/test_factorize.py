import re
from math import prod

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from lsr import factorize
from lsr.factorize import captured_by_rows, captured_by_svd, leading_row_space, random_factors, row_space_factors
from lsr.separable import kron_sum
from lsr.shapes import max_separation_rank, split_width

RANKS = {2: (2, 2), 3: (2, 2, 2)}


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def decaying(rows, columns, seed=0):
    """A weight with well separated singular values 1, 1/2, 1/3, ..."""
    count = min(rows, columns)
    left = torch.linalg.qr(normal(rows, count, seed=seed)).Q
    right = torch.linalg.qr(normal(columns, count, seed=seed + 1)).Q
    return (left / torch.arange(1, count + 1)) @ right.T


def orthogonal(size, seed=0):
    return torch.linalg.qr(normal(size, size, seed=seed)).Q


def draw(terms=4, width=768, rank_shape=(2, 2), *, zero=True, seed=0):
    shape = split_width(width, rank_shape)
    return random_factors(rank_shape, shape, shape, width, terms, zero, torch.Generator().manual_seed(seed))


def row_space(weight, rank_shape, terms, seed=0):
    return row_space_factors(weight, rank_shape, split_width(weight.shape[1], rank_shape), terms, seed)


# Random factors


@pytest.mark.parametrize("rank_shape", [(2, 2), (4, 2), (2, 2, 2)])
@pytest.mark.parametrize("terms", [1, 16])
def test_a_random_factor_a_has_the_variance_of_lora(rank_shape, terms):
    draws = [kron_sum(*draw(terms, 600, rank_shape, seed=seed)[0]) for seed in range(100)]
    assert torch.stack(draws).var().item() == pytest.approx(1 / (3 * 600), rel=0.1)


@pytest.mark.parametrize("rank_shape", RANKS.values(), ids=RANKS)
def test_only_the_first_factor_of_b_starts_at_zero(rank_shape):
    a, (first, *frame) = draw(rank_shape=rank_shape)
    assert not first.any()
    assert all(factor.all() for factor in (*a, *frame))


@pytest.mark.parametrize("rank_shape", RANKS.values(), ids=RANKS)
def test_with_zero_off_b_is_random_too(rank_shape):
    _, b = draw(rank_shape=rank_shape, zero=False)
    assert all(factor.all() for factor in b)


@pytest.mark.parametrize("rank_shape", RANKS.values(), ids=RANKS)
@pytest.mark.parametrize("terms", [1, 16])
def test_the_frames_of_a_and_b_have_the_same_size(rank_shape, terms):
    draws = [draw(terms, rank_shape=rank_shape, seed=seed) for seed in range(30)]
    for position in range(1, len(rank_shape)):
        a, b = (torch.stack([drawn[side][position] for drawn in draws]) for side in (0, 1))
        assert a.square().mean().item() == pytest.approx(1 / terms if position == 1 else 1, rel=0.15)
        assert b.square().mean().item() == pytest.approx(a.square().mean().item(), rel=0.2)


@pytest.mark.parametrize("zero", [True, False])
def test_the_same_generator_gives_the_same_bytes(zero):
    for one, two in zip(draw(zero=zero), draw(zero=zero), strict=True):
        assert [factor.numpy().tobytes() for factor in one] == [factor.numpy().tobytes() for factor in two]


def test_another_seed_gives_other_factors():
    assert not torch.equal(draw(seed=0)[0][0], draw(seed=1)[0][0])


@pytest.mark.parametrize(("width", "rank_shape"), [(1, (1, 1)), (1, (2, 2)), (2, (3, 1)), (7, (1, 1, 1))])
def test_the_smallest_layers_have_factors_too(width, rank_shape):
    a, b = draw(1, width, rank_shape)
    assert kron_sum(*a).shape[0] == kron_sum(*b).shape[1] == prod(rank_shape)
    assert kron_sum(*a).shape[1] >= width


def test_factors_have_values_even_where_new_tensors_have_none():
    with torch.device("meta"):
        a, b = draw()
    assert {factor.device.type for factor in (*a, *b)} == {"cpu"}


# The leading row space


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
    monkeypatch.setattr(factorize, "FULL_SVD_UP_TO", 29)
    assert_close(leading_row_space(weight, 4), full, atol=1e-6, rtol=0)


def test_the_randomised_svd_is_another_way_than_the_full_one(monkeypatch):
    weight = normal(80, 80)
    full = leading_row_space(weight, 4)
    monkeypatch.setattr(factorize, "FULL_SVD_UP_TO", 79)
    assert not torch.equal(leading_row_space(weight, 4), full)


def test_the_randomised_svd_gives_the_same_bytes_and_leaves_numpys_random_numbers_alone(monkeypatch):
    monkeypatch.setattr(factorize, "FULL_SVD_UP_TO", 1)
    state = np.random.get_state()[1].copy()
    one, two = (leading_row_space(normal(40, 30), 4, seed=3).numpy().tobytes() for _ in range(2))
    assert one == two
    assert np.array_equal(np.random.get_state()[1], state)


# Row-space factors


@pytest.mark.parametrize("width", [24, 26, 53])
@pytest.mark.parametrize("rank_shape", RANKS.values(), ids=RANKS)
def test_a_row_space_factor_has_the_norm_that_lora_expects(width, rank_shape):
    factors = row_space(decaying(20, width), rank_shape, 3)
    a = kron_sum(*factors)[:, :width]
    assert a.norm().square().item() == pytest.approx(prod(rank_shape) / 3)


@pytest.mark.parametrize("rank_shape", RANKS.values(), ids=RANKS)
@pytest.mark.parametrize("terms", [1, 4, 8])
def test_the_frame_of_a_row_space_factor_has_the_size_of_a_random_one(rank_shape, terms):
    _, second, *others = row_space(decaying(20, 24), rank_shape, terms)
    assert second.square().mean().sqrt().item() == pytest.approx(terms**-0.5)
    for factor in others:
        assert factor.square().mean().sqrt().item() == pytest.approx(1)


@pytest.mark.parametrize("rank_shape", RANKS.values(), ids=RANKS)
def test_a_row_space_factor_overlaps_far_more_than_a_random_one(rank_shape):
    weight = decaying(60, 60)
    leading = leading_row_space(weight, prod(rank_shape))
    informed = captured_by_rows(weight, leading, kron_sum(*row_space(weight, rank_shape, 8))[:, :60])
    chance = captured_by_rows(weight, leading, kron_sum(*draw(8, 60, rank_shape)[0])[:, :60])
    assert informed.overlap > 3 * chance.overlap
    assert informed.energy > 3 * chance.energy


@pytest.mark.parametrize("width", [24, 26])
def test_a_row_space_factor_with_all_terms_spans_the_leading_rows_exactly(width):
    weight = decaying(20, width)
    factors = row_space(weight, (2, 2), max_separation_rank((2, 2), split_width(width, (2, 2))))
    captured = captured_by_rows(weight, leading_row_space(weight, 4), kron_sum(*factors)[:, :width])
    assert captured.overlap == pytest.approx(1)


@pytest.mark.parametrize("rank_shape", RANKS.values(), ids=RANKS)
def test_a_row_space_factor_does_not_depend_on_the_left_singular_vectors(rank_shape):
    weight = decaying(24, 24)
    for one, two in zip(
        row_space(weight, rank_shape, 4), row_space(orthogonal(24, seed=5) @ weight, rank_shape, 4), strict=True
    ):
        assert_close(one, two, atol=1e-8, rtol=0)


def test_a_row_space_factor_does_not_depend_on_the_sign_of_the_weight():
    weight = decaying(24, 24)
    for one, two in zip(row_space(weight, (2, 2), 4), row_space(-weight, (2, 2), 4), strict=True):
        assert_close(one, two, atol=1e-8, rtol=0)


def test_a_row_space_factor_does_not_depend_on_the_scale_of_the_weight():
    weight = decaying(24, 24)
    for one, two in zip(row_space(weight, (2, 2), 4), row_space(1e-4 * weight, (2, 2), 4), strict=True):
        assert_close(one, two, atol=1e-8, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_a_weight_in_lower_precision_gives_nearly_the_same_factor(dtype, tolerance):
    weight = decaying(24, 24)
    for one, two in zip(row_space(weight, (2, 2), 4), row_space(weight.to(dtype), (2, 2), 4), strict=True):
        assert two.dtype is torch.float64
        assert_close(one, two, atol=tolerance, rtol=0)


@pytest.mark.parametrize("rank_shape", RANKS.values(), ids=RANKS)
def test_row_space_factors_come_as_the_same_bytes(rank_shape):
    one, two = (row_space(decaying(20, 24), rank_shape, 4) for _ in range(2))
    assert [factor.numpy().tobytes() for factor in one] == [factor.numpy().tobytes() for factor in two]


@pytest.mark.parametrize("rank_shape", RANKS.values(), ids=RANKS)
def test_a_trainable_weight_gives_factors_without_a_gradient(rank_shape):
    factors = row_space(decaying(20, 24).requires_grad_(), rank_shape, 4)
    assert not any(factor.requires_grad for factor in factors)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_a_weight_without_a_row_space_is_refused_with_its_largest_entry(value):
    weight = torch.zeros(8, 8)
    weight[3, 4] = value
    with pytest.raises(ValueError, match=f"no row space to start from: its largest entry is {value}"):
        row_space(weight, (2, 2), 2)


@pytest.mark.parametrize("shape", [(3, 8), (8, 3)])
def test_a_rank_beyond_the_weight_is_refused_with_the_bounds(shape):
    message = f"the rank must be in [1, 3] for a weight {shape}, got 4"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        row_space(normal(*shape), (2, 2), 2)


# What is captured


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


def test_storing_as_many_numbers_as_the_weight_captures_everything():
    captured = captured_by_svd(normal(10, 8), 4, 64)
    assert (captured.overlap, captured.energy) == (1.0, pytest.approx(1))


def test_storing_more_numbers_than_the_weight_has_captures_no_more_than_everything():
    captured = captured_by_svd(normal(10, 8), 4, 6400)
    assert (captured.overlap, captured.energy) == (1.0, pytest.approx(1))


@given(st.integers(0, 79))
def test_one_more_stored_number_never_captures_less(stored):
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
