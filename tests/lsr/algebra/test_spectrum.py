"""Leading singular parts against numpy's, whatever the BLAS."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from lsr.algebra import spectrum
from lsr.algebra.frames import leading_frames, paired_frames
from lsr.algebra.separable import nearest_kron_sum
from lsr.algebra.spectrum import leading_svd
from tests.lsr.layers import decaying, normal


@given(st.integers(1, 8), st.integers(1, 8), st.data())
def test_the_leading_part_is_the_nearest_matrix_of_its_rank_with_canonical_signs(rows, columns, data):
    rank = data.draw(st.integers(1, min(rows, columns)))
    matrix = normal(rows, columns, seed=rows)
    left, values, right = leading_svd(matrix, rank)
    rest = matrix - left * values @ right
    assert_close(rest.norm(), torch.linalg.svdvals(matrix)[rank:].norm(), atol=1e-12, rtol=0)
    assert_close(right @ right.T, torch.eye(rank, dtype=torch.float64))
    assert (right.gather(1, right.abs().argmax(dim=1, keepdim=True)) > 0).all()
    assert_close(leading_svd(-matrix, rank)[2], right, atol=1e-8, rtol=0)


@pytest.mark.parametrize("shape", [(40, 30), (30, 40)])
def test_the_randomized_svd_of_a_large_matrix_finds_the_same_always(monkeypatch, shape):
    full = leading_svd(decaying(*shape), 4)
    monkeypatch.setattr(spectrum, "LARGE", 1)
    state = np.random.get_state()[1].copy()
    one, two = (leading_svd(decaying(*shape), 4, seed=3) for _ in range(2))
    for first, again, exact in zip(one, two, full, strict=True):
        assert torch.equal(first, again)
        assert not torch.equal(first, exact)
        assert_close(first, exact, atol=1e-5, rtol=0)
    assert np.array_equal(np.random.get_state()[1], state)


# Whatever the BLAS


@pytest.fixture
def gives_up(monkeypatch):
    """NumPy and torch as with OpenBLAS on some AMD processors: their driver does not converge for a finite matrix."""

    def numpy_svd(*args, **kwargs):
        raise np.linalg.LinAlgError("SVD did not converge")

    def torch_svd(*args, **kwargs):
        raise torch.linalg.LinAlgError("linalg.svd: The algorithm failed to converge")

    def start():
        monkeypatch.setattr(np.linalg, "svd", numpy_svd)
        monkeypatch.setattr(torch.linalg, "svd", torch_svd)

    return start


@pytest.mark.parametrize(
    "decompose",
    [
        lambda: leading_svd(normal(9, 6), 3),
        lambda: leading_svd((normal(9, 3), normal(3, 6)), 2),
        lambda: leading_frames([normal(9, 6, seed=seed) for seed in range(3)], 2),
        lambda: leading_frames([(normal(9, 2, seed=seed), normal(2, 6, seed=9 + seed)) for seed in range(3)], 4),
        lambda: paired_frames([normal(9, 6, seed=seed) for seed in range(3)], 2),
        lambda: nearest_kron_sum(normal(6, 6), (2, 3), (3, 2), 2),
    ],
)
def test_decompositions_are_the_same_with_the_other_driver(decompose, gives_up):
    before = decompose()
    gives_up()
    assert_close(decompose(), before)
