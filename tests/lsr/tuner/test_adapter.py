"""One adapter without a layer, against the dense definition in float64."""

from functools import reduce

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from lsr.algebra.shapes import Form
from lsr.init.initialization import Start
from lsr.tuner.adapter import LsrAdapter

LIKE = torch.zeros(1, dtype=torch.float64)
DENSE = Form((3,), (7,), (5,), 1, 7, 5)
FORM = Form((2, 3), (3, 2), (2, 4), 4, 5, 7)
FORMS = st.sampled_from(
    [
        Form((1, 1), (1, 1), (1, 1), 1, 1, 1),
        Form((2, 3), (3, 2), (2, 4), 4, 6, 8),
        Form((3, 1), (3, 3), (2, 4), 2, 8, 7),  # padded
        DENSE,
    ]
)


def factors(form):
    """A start without zeros."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(form.separation_rank, *shape, dtype=torch.float64, generator=generator)

    return Start(
        [draw(r, n) for r, n in zip(form.rank_shape, form.in_shape, strict=True)],
        [draw(m, r) for r, m in zip(form.rank_shape, form.out_shape, strict=True)],
    )


def make(form=FORM, *, like=LIKE):
    adapter = LsrAdapter(form, 1.5)
    adapter.set_factors(factors(form), like)
    return adapter


def dense(side):
    """sum_k X1_k ⊗ X2_k ⊗ ..."""
    return sum(reduce(torch.kron, terms) for terms in zip(*side, strict=True))


def sides(form, start):
    return dense(start.a)[:, : form.in_features], dense(start.b)[: form.out_features]


@given(FORMS)
def test_the_update_is_that_of_the_kronecker_sums_without_padding(form):
    a, b = sides(form, factors(form))
    adapter = make(form)
    for found, expected in zip(adapter.collapse(), (a, b), strict=True):
        assert_close(found, expected)
    assert_close(adapter.update(), 1.5 * b @ a)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_factors_are_in_float32_at_least(dtype):
    adapter = make(like=LIKE.to(dtype))
    expected = torch.float64 if dtype is torch.float64 else torch.float32
    assert {tensor.dtype for tensor in adapter.state_dict().values()} == {expected}
