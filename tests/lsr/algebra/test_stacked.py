import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from lsr.algebra.separable import kron_sum
from lsr.algebra.stacked import Product, sum_products

SIZES = st.integers(1, 4)
WEIGHTS = st.sampled_from([1.0, -0.5, 0.0, 3.25])


def factors(terms, *shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(terms, *shape, dtype=torch.float64, generator=generator) for shape in shapes]


def product(seed, terms, r1, others, ins, outs, coefficient=1.0):
    """A random update; `others` are r2, ..., `ins` n1, n2, ..., `outs` m1, m2, ..."""
    ranks = (r1, *others)
    a = factors(terms, *zip(ranks, ins, strict=True), seed=seed)
    return Product(coefficient, a, factors(terms, *zip(outs, ranks, strict=True), seed=seed + 100))


def dense(products):
    return sum(p.coefficient * kron_sum(*p.b) @ kron_sum(*p.a) for p in products)


@st.composite
def updates(draw, count, most=3):
    """Updates of the same shapes, of different first ranks and numbers of terms."""
    others, ins, outs = ([draw(SIZES) for _ in range(length)] for length in (count - 1, count, count))
    sizes = st.tuples(st.integers(1, 3), SIZES, WEIGHTS)
    drawn = draw(st.lists(sizes, min_size=1, max_size=most))
    return [product(i, terms, r1, others, ins, outs, weight) for i, (terms, r1, weight) in enumerate(drawn)]


@pytest.mark.parametrize("count", [2, 3], ids=["two factors", "three factors"])
@given(st.data(), st.integers(0, 2))
def test_the_sum_is_that_of_the_dense_updates(count, data, spare):
    products = data.draw(updates(count))
    rank = sum(p.first_rank for p in products) + spare
    a, b = sum_products(products, rank, most_terms=sum(len(p.a[0]) for p in products))
    assert_close(kron_sum(*b) @ kron_sum(*a), dense(products))
    assert a[0].shape[1] == b[0].shape[2] == rank
    assert len({len(factor) for factor in (*a, *b)}) == 1


@given(updates(2))
def test_a_stack_of_sums_is_one_sum_with_the_rows_one_under_the_other(products):
    a, _ = sum_products(products, sum(p.first_rank for p in products), most_terms=100)
    assert_close(kron_sum(*a), torch.cat([kron_sum(*p.a) for p in products]))


@given(st.integers(1, 3), SIZES, SIZES, st.lists(WEIGHTS, min_size=1, max_size=3))
def test_updates_that_share_their_other_factors_need_no_more_terms(r1, n1, m1, weights):
    frame_a, frame_b = factors(3, (2, 4)), factors(3, (5, 2), seed=1)
    products = [
        Product(weight, [*factors(3, (r1, n1), seed=10 + i), *frame_a], [*factors(3, (m1, r1), seed=20 + i), *frame_b])
        for i, weight in enumerate(weights)
    ]
    a, b = sum_products(products, r1 * len(weights), most_terms=3)
    assert_close(kron_sum(*b) @ kron_sum(*a), dense(products))
    assert torch.equal(a[1], frame_a[0])
    assert torch.equal(b[1], frame_b[0])


def test_terms_that_do_not_fit_are_decomposed_again_and_nothing_is_left_out():
    products = [product(i, 5, 2, [2], [6, 4], [6, 4], 0.7) for i in range(3)]  # 15 terms; r2 * n2 = 8 hold everything
    a, b = sum_products(products, 6, most_terms=8)
    assert len(a[0]) == len(b[0]) == 8
    assert_close(kron_sum(*b) @ kron_sum(*a), dense(products), rtol=1e-10, atol=1e-10)


def test_a_sum_that_needs_more_terms_is_refused():
    products = [product(i, 4, 2, [2], [6, 4], [6, 4]) for i in range(2)]
    with pytest.raises(ValueError, match="the sum has 8 Kronecker terms, but 7 cannot represent it exactly"):
        sum_products(products, 4, most_terms=7)


def test_three_factors_are_never_decomposed_again():
    products = [product(i, 4, 1, [2, 2], [2, 2, 2], [2, 2, 2]) for i in range(2)]
    with pytest.raises(ValueError, match="the sum has 8 Kronecker terms of 3 factors, but at most 7 fit"):
        sum_products(products, 2, most_terms=7)


def test_a_single_update_keeps_its_bits():
    (one,) = products = [product(0, 3, 2, [2], [3, 4], [5, 2])]
    a, b = sum_products(products, 2, most_terms=3)
    assert all(torch.equal(x, y) for x, y in zip([*a, *b], [*one.a, *one.b], strict=True))
