"""Frozen factors are rounded once, when they are set: what is stored is what is computed with."""

import re

import pytest
import torch

from lsr.algebra.shapes import Form
from lsr.init.initialization import Start
from lsr.tuner.factors import LsrFactors

LIKE = torch.zeros(1)
FORM = Form((3,), (7,), (5,), 1, 7, 5)
each_storage = pytest.mark.parametrize("storage", ["float32", "bfloat16"])


def start_of(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(FORM.separation_rank, *shape, generator=generator)

    return Start(
        [draw(r, n) for r, n in zip(FORM.rank_shape, FORM.in_shape, strict=True)],
        [draw(m, r) for r, m in zip(FORM.rank_shape, FORM.out_shape, strict=True)],
    )


def frozen(storage):
    factors = LsrFactors(FORM, "core", storage)
    factors.set_factors(start_of(), LIKE)
    return factors


@each_storage
def test_frozen_factors_are_buffers_of_the_storage_and_read_in_float32(storage):
    factors = frozen(storage)
    assert not list(factors.parameters())
    state = factors.state_dict()
    assert {value.dtype for value in state.values()} == {getattr(torch, storage)}
    assert {factor.dtype for side in factors.factors() for factor in side} == {torch.float32}


@pytest.mark.parametrize(
    ("storage", "change", "message"),
    [
        ("float32", {"factor_A1": None}, "factor_A1 is missing"),
        ("float32", {"factor_A3": torch.zeros(1)}, "factor_A3 is no part of these frames"),
        ("float32", {"factor_A1": torch.zeros(1, 3, 4)}, "factor_A1 is (1, 3, 4), needed: (1, 3, 7)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(storage, change, message):
    tensors = {**frozen(storage).state_dict(), **change}
    factors = LsrFactors(FORM, "core", storage)
    with pytest.raises(ValueError, match=re.escape(message)):
        factors.load({name: value for name, value in tensors.items() if value is not None}, LIKE)
