"""Frozen factors are rounded once, when they are set: what is stored is what is computed with."""

import re

import pytest
import torch

from lsr.algebra.shapes import Form
from lsr.init.initialization import Start
from lsr.tuner.factors import LsrFactors

LIKE = torch.zeros(1)
FORMS = {
    "one factor": Form((3,), (7,), (5,), 1, 7, 5),
    "two factors": Form((2, 3), (3, 2), (2, 4), 4, 5, 7),
    "three factors": Form((2, 1, 2), (2, 2, 2), (3, 1, 3), 2, 7, 8),
}
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
each_storage = pytest.mark.parametrize("storage", ["float32", "bfloat16"])


def start_of(form, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return scale * torch.randn(form.separation_rank, *shape, generator=generator)

    return Start(
        [draw(r, n) for r, n in zip(form.rank_shape, form.in_shape, strict=True)],
        [draw(m, r) for r, m in zip(form.rank_shape, form.out_shape, strict=True)],
    )


def frozen(form, storage="float32", **options):
    factors = LsrFactors(form, "core", storage, **options)
    factors.set_factors(start_of(form), LIKE)
    return factors


@each_form
@each_storage
def test_frozen_factors_are_buffers_of_the_storage_and_read_in_float32(form, storage):
    factors = frozen(form, storage)
    assert not list(factors.parameters())
    state = factors.state_dict()
    assert {value.dtype for value in state.values()} == {getattr(torch, storage)}
    assert {factor.dtype for side in factors.factors() for factor in side} == {torch.float32}


@each_form
def test_bfloat16_is_the_nearest_one(form):
    for found, given_ones in zip(frozen(form, "bfloat16").factors(), (start_of(form).a, start_of(form).b), strict=True):
        assert all(torch.equal(one, two.bfloat16().float()) for one, two in zip(found, given_ones, strict=True))


@each_form
@each_storage
def test_what_is_set_again_takes_the_place_of_what_was_there(form, storage):
    factors, other = frozen(form, storage), LsrFactors(form, "core", storage)
    buffers = dict(factors.named_buffers())
    for each in (factors, other):
        each.set_factors(start_of(form, seed=5), LIKE)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in factors.state_dict().items())
    assert all(value is buffers[name] for name, value in factors.named_buffers())


@each_form
@each_storage
def test_what_is_loaded_has_the_bits_of_what_was_stored(form, storage):
    factors, other = frozen(form, storage), LsrFactors(form, "core", storage, persistent=False)
    other.load(factors.state_dict(), LIKE)
    assert not other.state_dict()
    for one, two in zip(factors.factors(), other.factors(), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(one, two, strict=True))


@pytest.mark.parametrize(
    ("storage", "change", "message"),
    [
        ("float32", {"factor_A1": None}, "factor_A1 is missing"),
        ("float32", {"factor_A3": torch.zeros(1)}, "factor_A3 is no part of these frames"),
        ("float32", {"factor_A1": torch.zeros(4, 2, 4)}, "factor_A1 is (4, 2, 4) in torch.float32, needed: (4, 2, 3)"),
        ("float32", {"factor_A1": torch.zeros(4, 2, 3, dtype=torch.uint8)}, "factor_A1 is (4, 2, 3) in torch.uint8"),
        ("bfloat16", {"factor_A1": torch.zeros(4, 2, 3)}, "factor_A1 is (4, 2, 3) in torch.float32, needed: (4, 2, 3)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(storage, change, message):
    form = FORMS["two factors"]
    tensors = {**frozen(form, storage).state_dict(), **change}
    factors = LsrFactors(form, "core", storage)
    with pytest.raises(ValueError, match=re.escape(message)):
        factors.load({name: value for name, value in tensors.items() if value is not None}, LIKE)


@each_form
@pytest.mark.parametrize("train", ["factors", "core", "all"])
def test_what_trains_is_a_parameter(form, train):
    factors = LsrFactors(form, train)
    factors.set_factors(start_of(form), LIKE)
    count = len(form.rank_shape)
    trained = {"factors": count, "all": count, "core": 0}[train]
    assert len(list(factors.parameters())) == 2 * trained
    assert len(list(factors.buffers())) == 2 * (count - trained)
