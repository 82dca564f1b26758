from math import prod

import pytest
import torch

from lsr.algebra.separable import kron_sum
from tests.lsr.init.forms import RANKS, draw


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
