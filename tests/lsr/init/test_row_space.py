from math import prod

import pytest
import torch
from torch.testing import assert_close

from lsr.algebra.separable import kron_sum
from lsr.algebra.shapes import max_separation_rank, split_width
from lsr.algebra.spectrum import leading_row_space
from lsr.init import row_space as initialization
from lsr.init.quality import captured_by_rows
from tests.lsr.init.forms import RANKS, draw, source_of
from tests.lsr.matrices import decaying, normal


def row_space(weight, rank_shape, terms, seed=0):
    return initialization.start(source_of(weight, rank_shape, terms, seed=seed)).a


def orthogonal(size, seed=0):
    return torch.linalg.qr(normal(size, size, seed=seed)).Q


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
