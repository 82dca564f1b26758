"""The separable decomposition of the weight, the initial update of `principal`, which is subtracted from it."""

from itertools import pairwise
from math import prod
from unittest.mock import patch

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.testing import assert_close

from lsr import LsrConfig
from lsr.algebra import separable, spectrum
from lsr.algebra.separable import kron_sum
from lsr.init import principal
from lsr.tuner.linear import adapted_layers
from tests.lsr.init.forms import RANKS, source_of
from tests.lsr.matrices import decaying, normal

each_count = pytest.mark.parametrize("rank_shape", RANKS.values(), ids=RANKS)
SCALING = 0.3


def update(found, rows, columns, scaling=SCALING):
    return scaling * (kron_sum(*found.b)[:rows] @ kron_sum(*found.a)[:, :columns])


def planted(rank_shape, in_shape, out_shape, terms, seed=0):
    """A weight that is the product of two sums of Kronecker products, each with orthonormal directions."""
    a, b = (
        [normal(terms, r, n, seed=seed + 10 * side + i) for i, (r, n) in enumerate(zip(rank_shape, shape, strict=True))]
        for side, shape in enumerate((in_shape, out_shape))
    )
    return kron_sum(*b).T @ kron_sum(*a)


@pytest.mark.parametrize(("rank_shape", "called"), [((2, 2), "svd_interface"), ((2, 2, 2), "parafac")])
def test_tensorly_decomposes_both_sides_of_the_weight(rank_shape, called):
    source = source_of(decaying(24, 24), rank_shape, 2)
    original = getattr(separable, called)
    with (
        patch.object(spectrum, "svd_interface", wraps=spectrum.svd_interface) as of_the_weight,
        patch.object(separable, called, wraps=original) as of_a_side,
    ):
        principal.start(source)
    assert of_the_weight.call_count == 1
    assert of_a_side.call_count == 2


@pytest.mark.parametrize(
    ("rank_shape", "in_shape", "out_shape"), [((2, 2), (6, 4), (4, 6)), ((2, 2, 1), (3, 4, 2), (4, 3, 2))]
)
@pytest.mark.parametrize("terms", [1, 2])
def test_a_planted_sum_of_kronecker_products_is_found(rank_shape, in_shape, out_shape, terms):
    weight = planted(rank_shape, in_shape, out_shape, terms)
    source = source_of(weight, rank_shape, terms, in_shape=in_shape, out_shape=out_shape, scaling=SCALING)
    found = principal.start(source)
    print(found.error)
    assert found.error < 0.1
    assert_close(update(found, *weight.shape), weight, atol=0.1 * float(weight.norm()), rtol=0)


@each_count
def test_the_error_falls_with_the_separation_rank(rank_shape):
    weight = decaying(24, 24)
    errors = [principal.start(source_of(weight, rank_shape, terms)).error for terms in (1, 2, 4, 8)]
    assert all(more < fewer for fewer, more in pairwise(errors))
    best = torch.linalg.svdvals(weight)[prod(rank_shape) :].norm() / weight.norm()
    assert errors[-1] >= float(best) - 1e-9


@each_count
def test_the_error_is_the_distance_of_the_scaled_update_from_the_weight(rank_shape):
    weight = decaying(24, 24)
    found = principal.start(source_of(weight, rank_shape, 3, scaling=SCALING))
    left = torch.linalg.matrix_norm(weight - update(found, 24, 24)) / torch.linalg.matrix_norm(weight)
    assert found.error == pytest.approx(float(left), rel=1e-6)


def test_the_scaling_is_spread_over_the_factors():
    weight = decaying(20, 26)
    one, other = (
        update(principal.start(source_of(weight, terms=3, scaling=scaling)), 20, 26, scaling) for scaling in (1.0, 0.01)
    )
    assert_close(one, other, atol=1e-10, rtol=0)


@each_count
def test_all_factors_of_a_term_have_one_length(rank_shape):
    found = principal.start(source_of(decaying(24, 24), rank_shape, 3, scaling=SCALING))
    for side in (found.a, found.b):
        lengths = torch.stack([factor.flatten(1).norm(dim=1) for factor in side])
        assert_close(lengths, lengths[:1].expand_as(lengths))


def test_a_trainable_weight_in_lower_precision_gives_nearly_the_same_update_without_a_gradient():
    weight = decaying(24, 24)
    found = principal.start(source_of(weight.float().requires_grad_(), scaling=SCALING))
    assert not any(factor.requires_grad for factor in (*found.a, *found.b))
    expected = update(principal.start(source_of(weight, scaling=SCALING)), 24, 24)
    assert_close(update(found, 24, 24).double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_layer_subtracts_exactly_the_update_that_its_factors_make(dtype):
    torch.manual_seed(0)
    base = nn.Linear(24, 24, dtype=dtype)
    pretrained = base.weight.detach().clone()
    config = LsrConfig(rank_shape=(2, 2), separation_rank=4, init_weights="principal", target_modules=["0"], seed=0)
    model = get_peft_model(nn.Sequential(base), config)
    (layer,) = adapted_layers(model).values()
    adapter = layer.adapter("default")
    a, b = adapter.collapse()
    assert torch.equal(layer.base_parameter(), pretrained - adapter.scaling * (b @ a))
    assert (b @ a).norm() > 0.1 * pretrained.norm()
