"""Singular subspaces of weights: what a start is fitted to. In float64, with canonical signs."""

import tensorly as tl
import torch
from tensorly.tenalg import svd_interface
from torch import Tensor

FULL_SVD_UP_TO = 1024  # smaller side of a weight; above it a seeded randomised SVD is as good and far faster


def leading_row_space(
    weight: Tensor,  # (m, n)
    rank: int,
    seed: int = 0,
) -> Tensor:  # (rank, n), float64
    """Return the leading right singular vectors of a weight as orthonormal rows, with canonical signs.

    The sign of a singular vector is arbitrary and differs between LAPACK drivers, yet a flip changes the nearest
    Kronecker sum: so the largest entry of each row is made positive.

    Raises:
        ValueError: if the rank exceeds a side of the weight, or the weight is zero or not finite.
    """
    return _leading(weight, rank, seed)[2]


def leading_part(
    weight: Tensor,  # (m, n)
    rank: int,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:  # (m, rank), (rank, n), float64
    """Return U_r S_r^1/2 and S_r^1/2 V_r^T of the truncated SVD, with canonical signs.

    Raises:
        ValueError: as `leading_row_space`.
    """
    left, values, right = _leading(weight, rank, seed)
    return left * values.sqrt(), values.sqrt()[:, None] * right


def _leading(weight: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    matrix = _checked(weight, rank).numpy()
    method = "truncated_svd" if min(matrix.shape) <= FULL_SVD_UP_TO else "randomized_svd"
    options = {} if method == "truncated_svd" else {"random_state": seed, "n_iter": 5, "n_oversamples": 16}
    with tl.backend_context("numpy", local_threadsafe=True):
        found = svd_interface(matrix, method, n_eigenvecs=rank, **options)
    left, values, right = (torch.from_numpy(part.copy()) for part in found)
    signs = _canonical_signs(right)
    return left * signs.T, values, right * signs


def trailing_part(
    weight: Tensor,  # (m, n)
    rank: int,
) -> tuple[Tensor, Tensor]:  # (m, rank), (rank, n), float64
    """Return the part of the weight with its `rank` smallest singular values, U_t S_t and V_t^T, rows orthonormal.

    They come from the eigenvectors of the smaller of W W^T and W^T W: a randomised method finds leading ones only, and
    a full SVD costs several times as much. It resolves singular values above 1e-8 of the largest.

    Raises:
        ValueError: as `leading_row_space`.
    """
    matrix = _checked(weight, rank)
    is_wide = matrix.shape[0] < matrix.shape[1]
    if is_wide:
        left = torch.linalg.eigh(matrix @ matrix.T).eigenvectors[:, :rank]  # eigenvalues ascend
        rows = torch.linalg.qr((left.T @ matrix).T).Q.T
    else:
        rows = torch.linalg.eigh(matrix.T @ matrix).eigenvectors[:, :rank].T
    rows = rows * _canonical_signs(rows)
    return matrix @ rows.T, rows


def _checked(weight: Tensor, rank: int) -> Tensor:
    if not 1 <= rank <= min(weight.shape):
        raise ValueError(f"the rank must be in [1, {min(weight.shape)}] for a weight {tuple(weight.shape)}, got {rank}")
    matrix = weight.detach().to("cpu", torch.float64)
    largest = float(matrix.abs().max())
    if not 0 < largest < float("inf"):
        raise ValueError(f"the weight has no row space to start from: its largest entry is {largest}")
    return matrix


def _canonical_signs(rows: Tensor) -> Tensor:  # (k, n) -> (k, 1)
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    return torch.where(largest < 0, -1.0, 1.0).to(rows.dtype)
