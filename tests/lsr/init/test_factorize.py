from math import prod

import pytest
import torch
from torch.testing import assert_close

from lsr.algebra.separable import kron_sum
from lsr.algebra.shapes import Form, max_separation_rank, split_width
from lsr.algebra.spectrum import leading_row_space
from lsr.init.factorize import Start, random_factors, row_space_start
from lsr.init.quality import captured_by_rows
from tests.lsr.matrices import decaying, normal

RANKS = {2: (2, 2), 3: (2, 2, 2)}


def form_of(rows, columns, rank_shape=(2, 2), terms=4):
    return Form(rank_shape, split_width(columns, rank_shape), split_width(rows, rank_shape), terms, columns, rows)


def draw(terms=4, width=768, rank_shape=(2, 2), *, zero=True, seed=0):
    return random_factors(form_of(width, width, rank_shape, terms), zero, torch.Generator().manual_seed(seed))


def row_space(weight, rank_shape, terms, seed=0):
    form = form_of(*weight.shape, rank_shape, terms)
    return row_space_start(weight, form, Start(*random_factors(form, True, None)), seed=seed).a


def orthogonal(size, seed=0):
    return torch.linalg.qr(normal(size, size, seed=seed)).Q


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
