"""The starts from the seed and from the weight: the variance of LoRA's, and leading singular vectors."""

import pytest
import torch
from torch.testing import assert_close

from lsr.algebra.separable import kron_sum
from lsr.init import principal
from lsr.init.random import random_factors
from tests.lsr.init.forms import form_of, generator, source_of
from tests.lsr.matrices import decaying


def test_the_rows_of_a_come_nearer_to_the_leading_singular_vectors_with_each_term():
    weight, held = decaying(24, 26), []  # 26 is padded
    vectors = torch.linalg.svd(weight).Vh[:4].T
    for terms in (1, 2, 4, 8):
        rows = kron_sum(*principal.start(source_of(weight, (2, 2), terms, in_shape=(7, 4))).a)[:, :26]
        held.append(float((torch.linalg.qr(rows.T).Q.T @ vectors).square().sum()) / 4)
    assert held == sorted(held)
    assert_close(held[-1], 1.0, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("rank_shape", "terms"), [((2, 2), 1), ((4, 2), 16)])
def test_a_random_factor_a_has_the_variance_of_lora(rank_shape, terms):
    form = form_of(600, 600, rank_shape, terms)
    draws = [kron_sum(*random_factors(form, True, generator(seed))[0]) for seed in range(100)]
    assert torch.stack(draws).var().item() == pytest.approx(1 / (3 * 600), rel=0.1)
