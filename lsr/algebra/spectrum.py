"""Singular subspaces of matrices, the targets of initializations. In float64, with canonical signs.

The sign of a pair of singular vectors is arbitrary and differs between LAPACK drivers, yet it changes the nearest
Kronecker sum. So the largest entry of each right vector is made positive.
"""

import torch
from tensorly.tenalg import svd_interface
from torch import Tensor

from lsr.algebra.backend import converging_numpy, svd
from lsr.algebra.separable import canonical_signs, pad_columns
from lsr.algebra.shapes import check_rank

Matrix = Tensor | tuple[Tensor, Tensor]  # (M, N), or (M, k) and (k, N) whose product it is

# With more entries, a seeded randomized SVD in float32 captures nearly as much as a full one, and is far faster.
LARGE = 2**20


def leading_svd(
    matrix: Matrix,  # (M, N)
    rank: int,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # (M, rank), (rank,), (rank, N), float64
    """Return the leading part U, S, V^T of the SVD, with canonical signs.

    Raises:
        ValueError: if the rank exceeds a side of the matrix.
    """
    check_rank(rank, *shape_of(matrix))
    parts = _svd_of_dense(matrix, rank, seed) if isinstance(matrix, Tensor) else _svd_of_pair(*matrix, rank)
    left, values, right = parts
    signs = canonical_signs(right.T)[:, None]
    return left * signs.T, values, right * signs


def _svd_of_dense(matrix: Tensor, rank: int, seed: int) -> tuple[Tensor, ...]:
    dense = matrix.detach().cpu()
    is_large = dense.numel() > LARGE
    method = "randomized_svd" if is_large else "truncated_svd"
    options = {"random_state": seed, "n_iter": 5, "n_oversamples": 16} if is_large else {}
    with converging_numpy():
        parts = svd_interface(
            (dense.float() if is_large else dense.double()).numpy(), method, n_eigenvecs=rank, **options
        )
    return tuple(torch.from_numpy(part.copy()).double() for part in parts)


def _svd_of_pair(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, ...]:
    if left.shape[1] < rank:  # pad with zeros, whose singular vectors complete the bases
        left, right = pad_columns(left, rank), pad_columns(right.T, rank).T
    (q_left, core_left), (q_right, core_right) = torch.linalg.qr(left), torch.linalg.qr(right.T)
    u, values, vt = svd(core_left @ core_right.T)
    return (q_left @ u)[:, :rank], values[:rank], (vt @ q_right.T)[:rank]


def shape_of(matrix: Matrix) -> tuple[int, int]:
    """Return (M, N)."""
    left, right = (matrix, matrix) if isinstance(matrix, Tensor) else matrix
    return len(left), right.shape[1]


def norm_of(matrix: Matrix) -> float:
    """Return the Frobenius norm; it is not finite if an entry is not.

    Of a pair it comes from the R factors of QR decompositions: nothing cancels, nothing large is formed.
    """
    if isinstance(matrix, Tensor):
        return float(torch.linalg.vector_norm(matrix.detach(), dtype=torch.float64))
    left, right = (torch.linalg.qr(side.detach().double(), mode="r").R for side in (matrix[0], matrix[1].T))
    return float(torch.linalg.matrix_norm(left @ right.T))


def distance_of_pairs(
    one: tuple[Tensor, Tensor],  # (M, k), (k, N)
    other: tuple[Tensor, Tensor],  # (M, l), (l, N)
) -> float:
    """Return the Frobenius distance between two products without forming either."""
    (one_left, one_right), (left, right) = ([side.double() for side in pair] for pair in (one, other))
    if one_left.equal(left) and one_right.equal(right):
        return 0.0  # rather than roundoff
    return norm_of((torch.cat([one_left, -left], dim=1), torch.cat([one_right, right])))
