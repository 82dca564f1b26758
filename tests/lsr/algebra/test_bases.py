"""Leading singular parts and bases against dense references in numpy, and least squares, whatever the BLAS."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from lsr.algebra import spectrum
from lsr.algebra.separable import nearest_kron_sum
from lsr.algebra.spectrum import (
    core_between,
    diagonal_between,
    diagonalize_jointly,
    energy_between,
    full_svd,
    leading_bases,
    leading_svd,
)
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


@given(st.integers(1, 8), st.integers(1, 8))
def test_the_whole_svd_is_that_of_numpy_with_canonical_signs(rows, columns):
    matrix = normal(rows, columns, seed=rows)
    left, values, right = full_svd(matrix)
    assert_close(left * values @ right, matrix)
    assert_close(values.numpy(), np.linalg.svd(matrix.numpy(), compute_uv=False))
    assert_close(left.T @ left, torch.eye(min(rows, columns), dtype=torch.float64))
    assert (right.gather(1, right.abs().argmax(dim=1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("shape", [(40, 30), (30, 40)])
def test_the_randomized_svd_of_a_large_matrix_finds_the_same_always(monkeypatch, shape):
    full = leading_svd(decaying(*shape), 4)
    monkeypatch.setattr(spectrum, "LARGE", 1)
    state = np.random.get_state()[1].copy()
    one, two = (leading_svd(decaying(*shape), 4, seed=seed) for seed in (3, 3 + 2**32))  # numpy has fewer seeds
    for first, again, exact in zip(one, two, full, strict=True):
        assert torch.equal(first, again)
        assert not torch.equal(first, exact)
        assert_close(first, exact, atol=1e-5, rtol=0)
    assert np.array_equal(np.random.get_state()[1], state)


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
        lambda: full_svd(normal(9, 6)),
        lambda: leading_bases([(normal(9, 2, seed=seed), normal(2, 6, seed=9 + seed)) for seed in range(3)], 4),
        lambda: diagonalize_jointly([normal(9, 6, seed=seed) for seed in range(3)], 2),
        lambda: nearest_kron_sum(normal(6, 6), (2, 3), (3, 2), 2),
    ],
)
def test_decompositions_are_the_same_with_the_other_driver(decompose, gives_up):
    before = decompose()
    gives_up()
    assert_close(decompose(), before)


@st.composite
def problems(draw, least=1):
    """Matrices of one shape, of very different norms, and a rank."""
    rows = draw(st.integers(1, 7))
    columns = draw(st.integers(1, 7))
    count = draw(st.integers(least, 4))
    seed = draw(st.integers(0, 99))
    matrices = [10.0 ** (3 * i) * normal(rows, columns, seed=seed + i) for i in range(count)]
    return matrices, draw(st.integers(1, min(rows, columns)))


def energy(matrices, left, right):
    """The sum over matrices of the fraction between two projections, from dense projections in numpy."""
    total = 0.0
    for matrix in matrices:
        kept = left.numpy() @ left.numpy().T @ matrix.numpy() @ right.numpy().T @ right.numpy()
        total += np.linalg.norm(kept) ** 2 / np.linalg.norm(matrix.numpy()) ** 2
    return total


@given(problems())
def test_bases_are_orthonormal_with_canonical_signs_and_hold_what_dense_projections_do(problem):
    matrices, rank = problem
    left, right = leading_bases(matrices, rank)
    assert (left.shape, right.shape) == ((len(matrices[0]), rank), (rank, matrices[0].shape[1]))
    for rows in (left.T, right):
        assert rows.dtype is torch.float64
        assert_close(rows @ rows.T, torch.eye(rank, dtype=torch.float64))
        assert (rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)) > 0).all()
    held = sum(energy_between(matrix, right, left) for matrix in matrices)
    assert held == pytest.approx(energy(matrices, left, right))
    for matrix in matrices:
        pair = matrix, torch.eye(matrix.shape[1], dtype=torch.float64)
        assert energy_between(pair, right, left) == pytest.approx(energy_between(matrix, right, left))
        in_rows = float((matrix @ right.T).square().sum() / matrix.square().sum())
        assert energy_between(matrix, 2 * right) == pytest.approx(in_rows) == energy_between(pair, 2 * right)


@given(problems(least=2), st.integers(0, 20))
def test_no_bases_at_random_hold_more_nor_those_of_the_stacked_matrices(problem, seed):
    """The HOSVD, from which the iteration starts, is a lower bound; the best of each matrix alone an upper one."""
    matrices, rank = problem
    held = energy(matrices, *leading_bases(matrices, rank))
    normed = [matrix / matrix.norm() for matrix in matrices]
    rows = torch.linalg.svd(torch.cat(normed), full_matrices=False).Vh[:rank]
    columns = torch.linalg.svd(torch.cat(normed, dim=1), full_matrices=False).U[:, :rank]
    assert held >= energy(matrices, columns, rows) - 1e-6
    left, right = (torch.linalg.qr(normal(size, rank, seed=seed)).Q for size in matrices[0].shape)
    assert held >= energy(matrices, left, right.T) - 1e-9
    assert held <= sum(float(torch.linalg.svdvals(matrix)[:rank].square().sum()) for matrix in normed) + 1e-9


def test_large_matrices_have_joint_bases_that_lead_in_none_of_them(monkeypatch):
    """Each has a direction of its own that is larger than the one that all of them share; their norms differ."""
    monkeypatch.setattr(spectrum, "LARGE", 1)
    columns = torch.linalg.qr(normal(20, 5)).Q.T
    rows = torch.linalg.qr(normal(24, 5, seed=1)).Q.T
    shared = torch.outer(columns[0], rows[0])
    matrices = [10.0**i * (shared + 1.2 * torch.outer(columns[i], rows[i])) for i in range(1, 5)]
    left, right = leading_bases(matrices, 1)
    assert_close((columns[0] @ left).abs(), torch.ones(1, dtype=torch.float64), atol=1e-5, rtol=0)
    assert_close((right @ rows[0]).abs(), torch.ones(1, dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("of", [leading_bases, diagonalize_jointly])
def test_zero_matrices_do_not_count(of):
    for zero in (torch.zeros(6, 8), (torch.zeros(6, 3), normal(3, 8))):
        for count in (1, 2):
            matrices = [normal(6, 8, seed=seed) for seed in range(count)]
            assert_close(of([zero, *matrices], 2), of(matrices, 2), atol=0, rtol=0)


@pytest.mark.parametrize("is_diagonal", [False, True])
@pytest.mark.parametrize("is_pair", [False, True])
def test_no_core_between_any_bases_is_nearer_to_the_matrix(is_pair, is_diagonal):
    """Against least squares over all entries, one unknown per entry of the core."""
    pair = normal(20, 6), normal(6, 26)
    dense = pair[0] @ pair[1]
    left = normal(20, 4, seed=2)
    right = normal(4, 26, seed=3)
    actual = (diagonal_between if is_diagonal else core_between)(pair if is_pair else dense, left, right)
    places = [(i, i) for i in range(4)] if is_diagonal else list(product(range(4), repeat=2))
    columns = torch.stack([torch.outer(left[:, i], right[j]).flatten() for i, j in places], dim=1)
    best = torch.linalg.lstsq(columns, dense.flatten()[:, None]).solution[:, 0]
    assert_close(actual, best if is_diagonal else best.reshape(4, 4))
