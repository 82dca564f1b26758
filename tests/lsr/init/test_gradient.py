import pytest
import torch
from torch.testing import assert_close

from lsr.algebra.separable import kron_sum
from lsr.algebra.shapes import max_separation_rank, split_width
from lsr.algebra.spectrum import leading_row_space
from lsr.init import gradient
from tests.lsr.init.forms import RANKS, source_of
from tests.lsr.matrices import decaying, normal

each_count = pytest.mark.parametrize("rank_shape", RANKS.values(), ids=RANKS)


def source(rows=20, columns=24, rank_shape=(2, 2), terms=3, seed=0):
    """A weight that has nothing to do with the gradient."""
    weight = normal(rows, columns, seed=7)
    generator = torch.Generator().manual_seed(0)
    return source_of(weight, rank_shape, terms, gradients=[decaying(rows, columns, seed=seed)], generator=generator)


@pytest.mark.parametrize("columns", [24, 26])
def test_a_with_all_terms_spans_the_leading_rows_of_the_gradient(columns):
    terms = max_separation_rank((2, 2), split_width(columns, (2, 2)))
    given = source(20, columns, terms=terms)
    a = kron_sum(*gradient.start(given).a)[:, :columns]
    (target,) = given.gradients
    basis = torch.linalg.qr(a.double().T).Q
    assert float((leading_row_space(target, 4) @ basis).square().sum()) == pytest.approx(4)


@each_count
def test_the_frame_of_b_is_that_of_the_leading_left_vectors_and_b1_is_zero(rank_shape):
    one, two = (gradient.start(source(rank_shape=rank_shape, seed=seed)) for seed in (0, 1))
    assert not one.b[0].any()
    assert not any(torch.equal(x, y) for x, y in zip(one.b[1:], two.b[1:], strict=True))
    assert one.b[1].square().mean().sqrt().item() == pytest.approx(3**-0.5)


def test_the_frame_of_b_does_not_depend_on_what_is_drawn():
    given = source()
    found = [gradient.start(given) for _ in range(2)]  # the generator has moved on
    assert_close(found[0].b, found[1].b, atol=0, rtol=0)


def test_without_a_gradient_it_says_where_one_comes_from():
    with pytest.raises(ValueError, match=r"this initialization needs examples: see lsr\.start_from_examples"):
        gradient.start(source_of(decaying(20, 24)))


@pytest.mark.parametrize("value", [0.0, torch.nan])
def test_a_gradient_without_a_row_space_is_refused(value):
    with pytest.raises(ValueError, match="cannot take frames from"):
        gradient.start(source_of(decaying(20, 24), gradients=[torch.full((20, 24), value)]))
