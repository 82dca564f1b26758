"""One adapter without a layer, against the dense definition in float64."""

import copy
from functools import reduce

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from lsr.algebra.shapes import Form
from lsr.init.initialization import Start
from lsr.tuner.adapter import LsrAdapter, Sizes

LIKE = torch.zeros(1, dtype=torch.float64)
FORMS = st.sampled_from(
    [
        Form((1, 1), (1, 1), (1, 1), 1, 1, 1),
        Form((2, 2), (3, 2), (2, 4), 1, 6, 8),
        Form((2, 3), (3, 2), (2, 4), 4, 6, 8),
        Form((3, 1), (3, 3), (2, 4), 2, 8, 7),  # padded
        Form((2, 1, 2), (2, 2, 2), (3, 1, 3), 2, 7, 8),
        Form((3,), (7,), (5,), 1, 7, 5),
    ]
)
PARTS = st.sampled_from(["factors", "first"])
CORED = st.sampled_from(["core", "all"])
FORM = Form((2, 3), (3, 2), (2, 4), 4, 5, 7)


def factors(form, seed=0, dtype=torch.float64):
    """A start without zeros."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(form.separation_rank, *shape, dtype=torch.float64, generator=generator).to(dtype)

    return Start(
        [draw(r, n) for r, n in zip(form.rank_shape, form.in_shape, strict=True)],
        [draw(m, r) for r, m in zip(form.rank_shape, form.out_shape, strict=True)],
    )


def make(form=FORM, *, folded=False, scaling=1.5, train="factors", like=LIKE):
    adapter = LsrAdapter(form, scaling, train=train)
    adapter.set_factors(factors(form), like)
    if folded:
        adapter.subtract(factors(form, seed=1), like)
    return adapter


def dense(side):
    """sum_k X1_k ⊗ X2_k ⊗ ..."""
    return sum(reduce(torch.kron, terms) for terms in zip(*side, strict=True))


def product(form, start):
    return dense(start.b)[: form.out_features] @ dense(start.a)[:, : form.in_features]


@given(FORMS, PARTS)
def test_it_collapses_to_its_kronecker_sums_without_the_padding(form, train):
    start = factors(form)
    a, b = make(form, train=train).collapse()
    assert_close(a, dense(start.a)[:, : form.in_features])
    assert_close(b, dense(start.b)[: form.out_features])


@given(FORMS, PARTS, st.booleans())
def test_the_update_is_that_of_the_factors_less_that_of_the_start(form, train, folded):
    start, first = factors(form), factors(form, seed=1)
    adapter = make(form, folded=folded, train=train)
    expected = product(form, start) - (product(form, first) if folded else 0)
    assert_close(adapter.update(), 1.5 * expected)
    if folded:
        assert_close(adapter.start_update(), 1.5 * product(form, first))


@given(FORMS, st.booleans())
def test_as_lora_the_product_is_the_update(form, folded):
    adapter = make(form, folded=folded)
    a, b = adapter.as_lora()
    rank = form.rank * (2 if folded else 1)
    assert (a.shape, b.shape) == ((rank, form.in_features), (form.out_features, rank))
    assert_close(adapter.scaling * b @ a, adapter.update())


@given(FORMS)
def test_the_operands_are_two_factors_or_whole_matrices(form):
    adapter = make(form)
    for (one, two), side, matrix in zip(adapter.operands(), adapter.factors(), adapter.collapse(), strict=True):
        if len(side) == 2:
            assert one is side[0]
            assert two is side[1]
        else:
            assert two is None
            assert torch.equal(one, matrix)


def cored(form, train="core", holder=None):
    """An adapter with a core, whose factors are its own or a holder's; and the core."""
    adapter = LsrAdapter(form, 1.5, train=train, holder=holder)
    if holder is None:
        adapter.set_factors(factors(form), LIKE)
    core = torch.randn(form.rank, form.rank, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    adapter.set_core(core, LIKE)
    return adapter, core


@given(FORMS, CORED, st.booleans())
def test_a_core_stands_between_both_sides(form, train, is_held):
    holder = make(form) if is_held else None
    adapter, core = cored(form, train, holder)
    start = factors(form)
    expected = dense(start.b)[: form.out_features] @ core @ dense(start.a)[:, : form.in_features]
    assert_close(adapter.update(), 1.5 * expected)
    (right, none), (left, nothing) = adapter.operands()
    assert none is nothing is None
    assert_close(left @ right, expected)
    a, b = adapter.as_lora()
    assert_close(b @ a, expected)


@given(FORMS, CORED)
def test_a_core_counts_and_what_is_held_counts_elsewhere(form, train):
    (own, _), held = cored(form, train), cored(form, train, make(form, train=train))[0]
    square = form.rank**2
    trained = square + (form.parameters if train == "all" else 0)
    assert own.sizes() == Sizes(trained, square + form.parameters, square + form.parameters)
    assert held.sizes() == Sizes(square, square, square)
    assert set(held.state_dict()) == {"core"}


def test_whether_it_trains_is_said_of_what_it_holds_too():
    holder = make()
    adapter, _ = cored(FORM, "all", holder)
    for trains in (False, True):
        adapter.requires_grad_(trains)
        assert {p.requires_grad for p in (*adapter.parameters(), *holder.parameters())} == {trains}


def test_another_core_is_set_in_place():
    adapter, core = cored(FORM)
    before = adapter.core
    adapter.set_core(2 * core, LIKE)
    assert adapter.core is before
    assert torch.equal(adapter.core, 2 * core)


def test_a_copy_of_both_shares_and_one_alone_has_a_holder_of_its_own():
    holder = make()
    adapter, _ = cored(FORM, "all", holder)
    twin, one = copy.deepcopy((adapter, holder))
    assert twin.frames is one is not holder
    assert copy.deepcopy(adapter).frames is not holder


@given(FORMS, PARTS, st.booleans())
def test_the_counts_are_those_of_what_trains_and_of_what_is_stored(form, train, folded):
    adapter = make(form, folded=folded, train=train)
    trained = sum(parameter.numel() for parameter in adapter.parameters())
    stored = sum(tensor.numel() for tensor in adapter.state_dict().values())
    effective = sum(factor.numel() for side in adapter.factors() for factor in side)
    assert adapter.sizes() == Sizes(trained, stored, effective)


@pytest.mark.parametrize(
    ("train", "trained"), [("factors", ["A1", "A2", "B1", "B2"]), ("first", ["A1", "B1"])], ids=["factors", "first"]
)
def test_what_trains_are_parameters_and_what_is_frozen_is_stored_beside(train, trained):
    adapter = make(train=train, folded=True)
    assert sorted(name for name, _ in adapter.named_parameters()) == [f"factor_{name}" for name in trained]
    assert set(adapter.state_dict()) == {
        f"{kind}_{f}" for kind in ("factor", "start") for f in ("A1", "A2", "B1", "B2")
    }


def test_the_factors_of_a_start_are_copied():
    start = factors(FORM, dtype=torch.float32)
    adapter = LsrAdapter(FORM, 1.0)
    adapter.set_factors(start, LIKE.float())
    adapter.subtract(start, LIKE.float())
    adapter.factor_A1.data += 1
    assert torch.equal(start.a[0], adapter.start_A1)
    assert torch.equal(start.a[0], factors(FORM, dtype=torch.float32).a[0])


def test_other_factors_are_set_in_place():
    adapter = make(train="first")
    before = [factor for side in adapter.factors() for factor in side]
    adapter.set_factors(factors(FORM, seed=2), LIKE)
    after = [factor for side in adapter.factors() for factor in side]
    assert all(one is other for one, other in zip(before, after, strict=True))
    assert_close(adapter.update(), 1.5 * product(FORM, factors(FORM, seed=2)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_factors_are_in_float32_at_least(dtype):
    adapter = make(folded=True, like=LIKE.to(dtype))
    expected = torch.float64 if dtype is torch.float64 else torch.float32
    assert {tensor.dtype for tensor in adapter.state_dict().values()} == {expected}


def test_a_start_is_forgotten_with_its_buffers():
    adapter = make(folded=True)
    adapter.forget_start()
    assert torch.equal(adapter.update(), make().update())
    assert adapter.state_dict().keys() == make().state_dict().keys()
    assert adapter.sizes() == make().sizes()


def test_the_start_of_a_file_finds_room_for_its_values():
    adapter, saved = make(), make(folded=True)
    adapter.make_room_for_start(LIKE)
    assert not adapter.start_update().any()
    adapter.load_state_dict(saved.state_dict())
    assert torch.equal(adapter.update(), saved.update())


def test_a_copy_is_independent():
    adapter = make(folded=True)
    before, twin = adapter.update(), copy.deepcopy(adapter)
    twin.factor_A1.data += 1
    assert torch.equal(adapter.update(), before)
    assert not torch.equal(twin.update(), before)
