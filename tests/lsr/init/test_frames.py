"""Frames around a core: orthonormal with one factor a side, of the same size with more."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from lsr.algebra.frames import leading_frames
from lsr.algebra.separable import kron_sum
from lsr.init import INITIALIZATIONS
from lsr.init.frames import random_frames
from tests.lsr.init.forms import as_bytes, source_of
from tests.lsr.matrices import decaying, normal

FRAMING = {word: one.frames for word, one in INITIALIZATIONS.items() if one.frames is not None}
RANKS = {1: (4,), 2: (2, 2), 3: (2, 1, 2)}
each_word = pytest.mark.parametrize("frames", FRAMING.values(), ids=FRAMING)
each_rank = pytest.mark.parametrize("rank_shape", RANKS.values(), ids=RANKS)


def sources(count=1, rank_shape=(4,), rows=20, columns=26, terms=None):
    """Layers with a weight and two gradients each; 26 is padded where it is split."""
    terms = terms or (1 if len(rank_shape) == 1 else 3)
    return [
        source_of(
            decaying(rows, columns, seed=i),
            rank_shape,
            terms,
            gradients=[decaying(rows, columns, seed=10 + i), decaying(rows, columns, seed=20 + i)],
            generator=torch.Generator().manual_seed(i),
        )
        for i in range(count)
    ]


def matrices(start, source):
    """B and A without what pads them."""
    form = source.form
    return kron_sum(*start.b)[: form.out_features], kron_sum(*start.a)[:, : form.in_features]


def test_these_make_frames():
    assert set(FRAMING) == {"random", "principal", "gradient", "update", "warm"}


@each_word
@each_rank
@pytest.mark.parametrize("count", [1, 3])
def test_directions_have_norm_1_in_the_mean(frames, rank_shape, count):
    given_ones = sources(count, rank_shape)
    left, right = matrices(frames(given_ones), given_ones[0])
    assert float(left.square().sum()) == pytest.approx(4)
    assert float(right.square().sum()) == pytest.approx(4)
    if len(rank_shape) == 1:
        for rows in (left.T, right):
            assert_close(rows @ rows.T, torch.eye(4, dtype=torch.float64))


@each_word
@each_rank
def test_the_same_layers_give_the_same_bytes(frames, rank_shape):
    assert as_bytes(frames(sources(2, rank_shape))) == as_bytes(frames(sources(2, rank_shape)))


@pytest.mark.parametrize("count", [1, 3])
def test_with_one_factor_they_are_the_directions_themselves(count):
    given_ones = sources(count)
    weights = [source.weight() for source in given_ones]
    gradients = [gradient for source in given_ones for gradient in source.gradients]
    for word, expected in {
        "principal": leading_frames(weights, 4),
        "gradient": leading_frames(gradients, 4),
        "update": leading_frames(gradients, 4),
    }.items():
        start = FRAMING[word](given_ones)
        for found, side in zip(matrices(start, given_ones[0]), expected, strict=True):
            assert torch.equal(found, side)
        assert start.error == 0


@pytest.mark.parametrize("word", ["principal", "gradient", "update"])
def test_with_all_terms_they_span_the_directions_and_with_fewer_say_what_is_left_out(word):
    """24 x 24 is not padded, where as many terms as a side allows hold any frame."""
    dense = sources(2, (4,), 24, 24)
    left, right = matrices(FRAMING[word](dense), dense[0])
    errors = []
    for terms in (1, 3, 8):
        split = sources(2, (2, 2), 24, 24, terms)
        start = FRAMING[word](split)
        found_left, found_right = matrices(start, split[0])
        errors.append(start.error)
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-6
    for found, side in ((found_left, left), (found_right.T, right.T)):
        basis = torch.linalg.qr(found).Q
        assert_close(basis @ basis.T, side @ side.T, atol=1e-6, rtol=0)


@given(st.integers(1, 4), st.integers(4, 9), st.integers(4, 9))
def test_random_ones_of_one_factor_are_orthonormal(rank, rows, columns):
    source = source_of(normal(rows, columns), (rank,), 1, generator=torch.Generator().manual_seed(rows))
    left, right = matrices(random_frames([source]), source)
    eye = torch.eye(rank, dtype=torch.float64)
    assert_close(left.T @ left, eye)
    assert_close(right @ right.T, eye)


@each_rank
def test_random_ones_are_those_of_the_first_layer_and_read_no_weight(rank_shape):
    def fail():
        raise AssertionError("a weight was read")

    one, many = sources(1, rank_shape), sources(3, rank_shape)
    for source in (*one, *many):
        object.__setattr__(source, "weight", fail)
    assert as_bytes(random_frames(one)) == as_bytes(random_frames(many))


def test_without_gradients_it_says_where_they_come_from():
    with pytest.raises(ValueError, match=r"this initialization needs examples: see lsr\.start_from_examples"):
        FRAMING["gradient"]([source_of(normal(8, 8), (2,), 1)])
