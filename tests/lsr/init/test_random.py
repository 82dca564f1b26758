import pytest
import torch

from lsr.algebra.separable import kron_sum
from lsr.init.random import random_factors
from tests.lsr.init.forms import RANKS, form_of, generator

each_count = pytest.mark.parametrize("rank_shape", RANKS.values(), ids=RANKS)


def draw(terms=4, width=768, rank_shape=(2, 2), *, zero=True, seed=0):
    return random_factors(form_of(width, width, rank_shape, terms), zero, generator(seed))


@pytest.mark.parametrize(("rank_shape", "terms"), [((2, 2), 1), ((4, 2), 16)])
def test_a_random_factor_a_has_the_variance_of_lora(rank_shape, terms):
    draws = [kron_sum(*draw(terms, 600, rank_shape, seed=seed)[0]) for seed in range(100)]
    assert torch.stack(draws).var().item() == pytest.approx(1 / (3 * 600), rel=0.1)


@each_count
def test_only_the_first_factor_of_b_starts_at_zero(rank_shape):
    a, (first, *others) = draw(rank_shape=rank_shape)
    assert not first.any()
    assert all(factor.all() for factor in (*a, *others, *draw(rank_shape=rank_shape, zero=False)[1]))
