"""What holds of every initialization: what it reads, what it returns, and that the same source gives the same bytes."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from lsr.init import INITIALIZATIONS, READERS
from lsr.init.initialization import Source
from tests.lsr.init.forms import RANKS, as_bytes, form_of
from tests.lsr.matrices import decaying

each_word = pytest.mark.parametrize("word", INITIALIZATIONS)
each_count = pytest.mark.parametrize("rank_shape", [(4,), *RANKS.values()], ids=[1, *RANKS])
WIDTHS = (20, 26)  # 26 is padded to 27 or more
OF_WEIGHTS = [word for word, one in INITIALIZATIONS.items() if one.reads == "weight"]
FOLDED = [word for word, one in INITIALIZATIONS.items() if one.folds]
BROKEN = {"zero": torch.zeros(20, 26), "not finite": torch.full((20, 26), torch.nan)}


def unread():
    raise AssertionError("the weight was read")


def terms_of(rank_shape):
    return 1 if len(rank_shape) == 1 else 3


def source_for(word, rank_shape=(2, 2)):
    """Only what the initialization says that it reads."""
    matrix = decaying(*WIDTHS)
    reads = INITIALIZATIONS[word].reads
    return Source(
        form_of(*WIDTHS, rank_shape, terms_of(rank_shape)),
        (lambda: matrix) if reads == "weight" else unread,
        scaling=0.7,
        seed=3,
        generator=torch.Generator().manual_seed(5),
        gradients=[matrix] if reads in READERS else (),
    )


def start_of(word, *arguments):
    return INITIALIZATIONS[word].start(source_for(word, *arguments))


@each_count
@each_word
def test_it_reads_what_it_says_and_returns_finite_factors_of_the_form(word, rank_shape):
    form, terms = form_of(*WIDTHS, rank_shape, terms_of(rank_shape)), terms_of(rank_shape)
    start = start_of(word, rank_shape)
    assert [tuple(factor.shape) for factor in start.a] == [
        (terms, r, n) for r, n in zip(rank_shape, form.in_shape, strict=True)
    ]
    assert [tuple(factor.shape) for factor in start.b] == [
        (terms, m, r) for r, m in zip(rank_shape, form.out_shape, strict=True)
    ]
    assert all(torch.isfinite(factor).all() for factor in (*start.a, *start.b))


@pytest.mark.parametrize("word", [word for word, one in INITIALIZATIONS.items() if one.reads != "seed"])
def test_what_it_says_it_reads_decides(word):
    other = decaying(*WIDTHS, seed=9)
    changes = {"weight": lambda: other} if INITIALIZATIONS[word].reads == "weight" else {"gradients": [other]}
    changed = replace(source_for(word), **changes)
    assert as_bytes(INITIALIZATIONS[word].start(changed)) != as_bytes(start_of(word))


@each_count
@each_word
def test_the_same_source_gives_the_same_bytes(word, rank_shape):
    assert as_bytes(start_of(word, rank_shape)) == as_bytes(start_of(word, rank_shape))


@each_word
def test_with_a_generator_of_its_own_it_draws_nothing_from_the_global_one(word):
    before = torch.get_rng_state()
    start_of(word)
    assert torch.equal(torch.get_rng_state(), before)


@each_count
@each_word
def test_b1_alone_is_zero_unless_there_is_an_update_to_fold_or_to_go_on_from(word, rank_shape):
    start = start_of(word, rank_shape)
    assert bool(start.b[0].any()) == (INITIALIZATIONS[word].folds or INITIALIZATIONS[word].goes_on)
    assert all(factor.any() for factor in (*start.a, *start.b[1:]))


@each_word
def test_an_error_is_told_of_what_is_fitted_alone(word):
    error = start_of(word).error
    assert (error is None) == (INITIALIZATIONS[word].reads == "seed")
    assert error is None or 0 <= error < 1


@pytest.mark.parametrize("weight", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("word", OF_WEIGHTS)
def test_a_weight_without_a_row_space_is_refused(word, weight):
    with pytest.raises(ValueError, match=r"the matrix is zero|expected a finite matrix|no row space to start from"):
        INITIALIZATIONS[word].start(replace(source_for(word), weight=lambda: weight))


@pytest.mark.parametrize("word", OF_WEIGHTS)
def test_a_weight_of_fewer_rows_than_the_rank_is_refused(word):
    small = replace(source_for(word), form=form_of(3, 26, (2, 2), 1), weight=lambda: decaying(3, 26))
    with pytest.raises(ValueError, match=r"rank"):
        INITIALIZATIONS[word].start(small)


def test_those_that_fold_fit_both_sides():
    assert FOLDED == ["principal"]


@each_word
def test_with_one_factor_a_side_a_spans_singular_vectors_and_what_is_folded_is_a_singular_part(word):
    start, matrix = start_of(word, (4,)), decaying(*WIDTHS)
    (a,), (b,) = start.a, start.b
    u, values, vt = torch.linalg.svd(matrix, full_matrices=False)
    if INITIALIZATIONS[word].folds:
        part = u[:, :4] * values[:4] @ vt[:4]
        assert_close(0.7 * b[0] @ a[0], part, atol=1e-8, rtol=0)
    elif word != "random":
        basis = torch.linalg.qr(a[0].double().T).Q
        assert_close(basis @ basis.T, vt[:4].T @ vt[:4], atol=1e-6, rtol=0)
