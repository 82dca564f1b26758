"""The separable decomposition of the weight by TensorLy: the initial update of `principal`, subtracted from it."""

from itertools import pairwise
from math import prod
from unittest.mock import patch

import pytest
import torch
from peft import get_peft_model
from torch import nn

from lsr import LsrConfig
from lsr.algebra import separable, spectrum
from lsr.algebra.separable import kron_sum
from lsr.init import principal
from lsr.tuner.linear import adapted_layers
from tests.lsr.algebra.problems import difference
from tests.lsr.init.forms import source_of
from tests.lsr.matrices import decaying

RANKS = (2, 2)
SCALING = 0.3


def update(start, rows, columns, scaling=SCALING):
    return scaling * (kron_sum(*start.b)[:rows] @ kron_sum(*start.a)[:, :columns])


def test_tensorly_decomposes_the_weight_and_both_sides_of_it():
    with (
        patch.object(spectrum, "svd_interface", wraps=spectrum.svd_interface) as of_the_weight,
        patch.object(separable, "svd_interface", wraps=separable.svd_interface) as of_a_side,
    ):
        principal.start(source_of(decaying(24, 24), RANKS, 2))
    assert of_the_weight.call_count == 1
    assert of_a_side.call_count == 2


def test_the_error_falls_with_the_separation_rank_and_is_the_distance_of_the_update():
    weight, errors = decaying(24, 24), []
    for terms in (1, 2, 4):
        start = principal.start(source_of(weight, RANKS, terms, scaling=SCALING))
        assert start.error == pytest.approx(difference(update(start, 24, 24), weight), rel=1e-6)
        errors.append(start.error)
    assert all(more < fewer for fewer, more in pairwise(errors))
    best = torch.linalg.svdvals(weight)[prod(RANKS) :].norm() / weight.norm()
    assert errors[-1] >= float(best) - 1e-9


def test_a_layer_subtracts_exactly_what_its_factors_make():
    torch.manual_seed(0)
    base = nn.Linear(24, 24)
    pretrained = base.weight.detach().clone()
    config = LsrConfig(rank_shape=(2, 2), separation_rank=4, init_weights="principal", target_modules=["0"], seed=0)
    (layer,) = adapted_layers(get_peft_model(nn.Sequential(base), config)).values()
    adapter = layer.adapter("default")
    a, b = adapter.collapse()
    assert torch.equal(layer.base_parameter(), pretrained - adapter.scaling * (b @ a))
    assert (adapter.scaling * (b @ a)).norm() > 0.1 * pretrained.norm()
