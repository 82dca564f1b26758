"""Singular subspaces of matrices, the targets of initializations. In float64, with canonical signs.

The sign of a pair of singular vectors is arbitrary and differs between LAPACK drivers, yet it changes the nearest
Kronecker sum. So the largest entry of each right vector is made positive.

LAPACK's fast driver, gesdd, does not converge for some finite matrices, often of low rank. Which ones depends on the
BLAS and the processor. The slower gesvd does, so it takes over when gesdd gives up, in NumPy, which TensorLy uses here,
and in torch. Reports: numpy/numpy#12941, OpenMathLib/OpenBLAS#3044.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import scipy.linalg
import tensorly as tl
import torch
from tensorly.backend.numpy_backend import NumpyBackend
from tensorly.tenalg import svd_interface
from torch import Tensor
from torch.nn import functional as F

Matrix = Tensor | tuple[Tensor, Tensor]  # (M, N), or (M, k) and (k, N) whose product it is

# With more entries, a seeded randomized SVD in float32 captures nearly as much as a full one, and is far faster.
LARGE = 2**20


class _ConvergingBackend(NumpyBackend, backend_name="numpy-converging"):  # type: ignore[call-arg, misc]
    @staticmethod
    def svd(matrix: np.ndarray, full_matrices: bool = True) -> tuple[np.ndarray, ...]:
        try:
            return np.linalg.svd(matrix, full_matrices=full_matrices)
        except np.linalg.LinAlgError:
            return scipy.linalg.svd(matrix, full_matrices=full_matrices, lapack_driver="gesvd")


_BACKEND = _ConvergingBackend()


@contextmanager
def converging_numpy() -> Iterator[None]:
    """Let TensorLy work on NumPy arrays in this thread, whatever backend is set elsewhere."""
    with tl.backend_context(_BACKEND, local_threadsafe=True):
        yield


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
    if (missing := rank - left.shape[1]) > 0:  # pad with zeros, whose singular vectors complete the bases
        left, right = F.pad(left, (0, missing)), F.pad(right, (0, 0, 0, missing))
    (q_left, core_left), (q_right, core_right) = torch.linalg.qr(left), torch.linalg.qr(right.T)
    core = core_left @ core_right.T
    try:
        u, values, vt = torch.linalg.svd(core, full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        parts = scipy.linalg.svd(core.numpy(), full_matrices=False, lapack_driver="gesvd")
        u, values, vt = (torch.from_numpy(part.copy()) for part in parts)
    return (q_left @ u)[:, :rank], values[:rank], (vt @ q_right.T)[:rank]


def check_rank(rank: int, rows: int, columns: int) -> None:
    """Refuse a rank that no matrix of these sizes has.

    Raises:
        ValueError: names the ranks that it may have.
    """
    smaller = min(rows, columns)
    if not 1 <= rank <= smaller:
        raise ValueError(f"the rank must be in [1, {smaller}], the smaller side of {rows} x {columns}, got {rank}")


def canonical_signs(columns: Tensor) -> Tensor:  # (size, s) -> (s,)
    """Return the signs that make the largest entry of each column positive."""
    largest = columns.gather(0, columns.abs().argmax(dim=0, keepdim=True))[0]
    return torch.where(largest < 0, -1.0, 1.0).to(columns.dtype)


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
