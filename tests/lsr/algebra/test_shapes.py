from itertools import product
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import get_peft_model
from torch import nn

from lsr import LsrConfig
from lsr.algebra.separable import kron_sum, nearest_kron_sum, rearrange
from lsr.algebra.shapes import MAX_PADDING, Form, max_separation_rank, split_width

RANKS = st.lists(st.integers(1, 5), min_size=2, max_size=3).map(tuple)


def cost(shape, rank_shape):
    return sum(rank * size for rank, size in zip(rank_shape, shape, strict=True))


def allowed_shapes(width, count):
    """Every shape whose product exceeds the width by at most 2 %, found by trying them all."""
    largest = width + width // 50
    return [shape for shape in product(range(1, largest + 1), repeat=count) if width <= prod(shape) <= largest]


@given(st.integers(1, 3000), RANKS)
def test_a_split_covers_the_width(width, rank_shape):
    shape = split_width(width, rank_shape)
    assert len(shape) == len(rank_shape)
    assert min(shape) >= 1
    assert prod(shape) >= width


@given(st.integers(1, 3000), RANKS)
def test_a_split_wastes_at_most_two_percent(width, rank_shape):
    assert prod(split_width(width, rank_shape)) - width <= 0.02 * width


def test_the_two_percent_are_what_the_package_says():
    assert MAX_PADDING == 0.02


@given(st.integers(1, 120), st.tuples(st.integers(1, 5), st.integers(1, 5)))
def test_no_pair_of_factors_is_cheaper(width, rank_shape):
    found = split_width(width, rank_shape)
    assert cost(found, rank_shape) == min(cost(shape, rank_shape) for shape in allowed_shapes(width, 2))


@pytest.mark.parametrize("rank_shape", [(1, 1, 1), (2, 2, 2), (1, 2, 4), (5, 1, 3)])
@pytest.mark.parametrize("width", [1, 2, 7, 24, 53])
def test_no_triple_of_factors_is_cheaper(width, rank_shape):
    found = split_width(width, rank_shape)
    assert cost(found, rank_shape) == min(cost(shape, rank_shape) for shape in allowed_shapes(width, 3))


@pytest.mark.parametrize("width", [6, 50, 75, 101, 113])  # 75 and 113 tie between two paddings at (1, 4)
@pytest.mark.parametrize("rank_shape", [(2, 2), (1, 4), (3, 2)])
def test_among_equally_cheap_splits_the_least_padding_wins_then_the_longest_first_factor(width, rank_shape):
    order = sorted(
        allowed_shapes(width, 2), key=lambda shape: (cost(shape, rank_shape), prod(shape), [-size for size in shape])
    )
    assert split_width(width, rank_shape) == order[0]


def test_768_splits_into_32_by_24():
    assert split_width(768, (2, 2)) == (32, 24)


@pytest.mark.parametrize("width", [769, 1021])
def test_a_prime_width_is_padded_rather_than_left_whole(width):
    shape = split_width(width, (2, 2))
    assert cost(shape, (2, 2)) < 0.15 * cost((width, 1), (2, 2))


@pytest.mark.parametrize(("width", "expected"), [(1, (1, 1)), (2, (2, 1))])
def test_the_smallest_widths_split_without_padding(width, expected):
    assert split_width(width, (2, 2)) == expected


@pytest.mark.parametrize(("width", "rank_shape"), [(0, (2, 2)), (-3, (2, 2)), (8, ())])
def test_a_split_without_width_or_factors_is_refused(width, rank_shape):
    with pytest.raises(ValueError, match="a split needs a width >= 1 and at least one factor, got"):
        split_width(width, rank_shape)


def test_the_case_of_the_paper_counts_3584_numbers():
    assert Form((2, 2), (32, 24), (32, 24), 16, 768, 768).parameters == 3584


def test_an_adapted_768_by_768_layer_trains_3584_numbers():
    model = get_peft_model(
        nn.Sequential(nn.Linear(768, 768)), LsrConfig(target_modules=["0"], rank_shape=(2, 2), separation_rank=16)
    )
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == 3584


@given(st.integers(1, 4), RANKS, st.integers(1, 40), st.integers(1, 40))
def test_the_count_is_that_of_the_factors(terms, rank_shape, columns, rows):
    in_shape, out_shape = split_width(columns, rank_shape), split_width(rows, rank_shape)
    shapes = [*zip(rank_shape, in_shape, strict=True), *zip(out_shape, rank_shape, strict=True)]
    stored = sum(torch.empty(terms, *shape).numel() for shape in shapes)
    form = Form(rank_shape, in_shape, out_shape, terms, columns, rows)
    assert form.parameters == stored
    assert form.first_parameters == terms * rank_shape[0] * (in_shape[0] + out_shape[0])


def test_the_most_terms_of_a_layer_are_those_of_its_tighter_side():
    assert Form((2, 2), (32, 24), (3, 2), 1, 768, 6).max_separation_rank == 4


@given(st.tuples(*[st.integers(1, 6)] * 4))
def test_the_most_terms_of_two_factors_is_the_smaller_mode(sizes):
    r1, r2, n1, n2 = sizes
    assert max_separation_rank((r1, r2), (n1, n2)) == min(r1 * n1, r2 * n2)


@given(st.tuples(*[st.integers(1, 4)] * 4), st.integers(0, 99))
def test_any_matrix_is_represented_exactly_by_the_most_terms(sizes, seed):
    r1, r2, n1, n2 = sizes
    matrix = torch.randn(r1 * r2, n1 * n2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    factors = nearest_kron_sum(matrix, (r1, r2), (n1, n2), max_separation_rank((r1, r2), (n1, n2)))
    torch.testing.assert_close(kron_sum(*factors), matrix)


def test_the_most_terms_of_three_factors_write_any_matrix_entry_by_entry():
    rank_shape, shape = (2, 2, 2), (3, 4, 2)
    modes = [6, 8, 4]
    tensor = torch.randn(*modes, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    terms = max_separation_rank(rank_shape, shape)
    assert terms == 24
    units = [torch.eye(6, dtype=torch.float64).repeat_interleave(4, 0), torch.eye(4, dtype=torch.float64).repeat(6, 1)]
    fibres = tensor.transpose(1, 2).reshape(terms, 8)  # along the largest mode, one for each pair of the other two
    vectors = [units[0], fibres, units[1]]
    factors = [v.reshape(terms, r, n) for v, r, n in zip(vectors, rank_shape, shape, strict=True)]
    torch.testing.assert_close(rearrange(kron_sum(*factors), rank_shape, shape), tensor)


def test_one_term_less_than_the_most_does_not_represent_every_matrix():
    matrix = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    factors = nearest_kron_sum(matrix, (2, 2), (3, 2), max_separation_rank((2, 2), (3, 2)) - 1)
    assert torch.dist(kron_sum(*factors), matrix) > 1e-3
