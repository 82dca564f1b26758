"""Singular subspaces of matrices, the targets of initializations, and frames, in float64, with canonical signs.

Frames are orthonormal bases of a few output and input directions that capture most of one matrix, or several jointly.
For one matrix they are its leading singular vectors. For several, stacked into a tensor (L, m, n), they are the two
factors of its Tucker decomposition over rows and columns: each matrix is approximately B R_l A, with its own core R_l.

The sign of a pair of singular vectors is arbitrary and differs between LAPACK drivers, yet it changes the nearest
Kronecker sum. So the largest entry of each right vector is made positive.

LAPACK's fast driver, gesdd, does not converge for some finite matrices, often of low rank. Which ones depends on the
BLAS and the processor. The slower gesvd does, so it takes over when gesdd gives up, in NumPy, which TensorLy uses here,
and in torch. Reports: numpy/numpy#12941, OpenMathLib/OpenBLAS#3044.
"""

from collections.abc import Sequence
from functools import partial
from math import isfinite

import numpy as np
import scipy.linalg
import tensorly as tl
import torch
from tensorly.backend.numpy_backend import NumpyBackend
from tensorly.cp_tensor import CPTensor
from tensorly.decomposition import parafac, partial_tucker
from tensorly.tenalg import svd_interface
from torch import Tensor
from torch.nn import functional as F

Matrix = Tensor | tuple[Tensor, Tensor]  # (M, N), or (M, k) and (k, N) whose product it is

# With more entries, a seeded randomized SVD in float32 captures nearly as much as a full one, and is far faster.
LARGE = 2**20
OVERSAMPLED = 16  # a large matrix is compressed to twice the rank plus this many singular vectors
SWEEPS = 200
# Relative to a stack of norm 1: parafac solves normal equations, which two nearly equal terms make singular.
PENALTY = 1e-3
TOLERANCE = 1e-6  # the iteration stops when the relative error changes by less


class _ConvergingBackend(NumpyBackend, backend_name="numpy-converging"):  # type: ignore[call-arg, misc]
    @staticmethod
    def svd(matrix: np.ndarray, full_matrices: bool = True) -> tuple[np.ndarray, ...]:
        try:
            return np.linalg.svd(matrix, full_matrices=full_matrices)
        except np.linalg.LinAlgError:
            return scipy.linalg.svd(matrix, full_matrices=full_matrices, lapack_driver="gesvd")


# TensorLy works on NumPy arrays in this thread, whatever backend is set elsewhere.
_converging_numpy = partial(tl.backend_context, _ConvergingBackend(), local_threadsafe=True)


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
    array = (dense.float() if is_large else dense.double()).numpy()
    with _converging_numpy():
        parts = svd_interface(array, method, n_eigenvecs=rank, **options)
    return tuple(torch.from_numpy(part.copy()).double() for part in parts)


def _svd_of_pair(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, ...]:
    missing = rank - left.shape[1]
    if missing > 0:  # pad with zeros, whose singular vectors complete the bases
        left = F.pad(left, (0, missing))
        right = F.pad(right, (0, 0, 0, missing))
    q_left, core_left = torch.linalg.qr(left)
    q_right, core_right = torch.linalg.qr(right.T)
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


def leading_frames(
    matrices: Sequence[Matrix],  # finite, not all zero: (m, n) each, or (m, k) and (k, n) whose product it is
    rank: int,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:  # (m, rank) with orthonormal columns, (rank, n) with orthonormal rows, float64
    """Return B and A that maximize `sum_l ||B^T G_l A^T||_F^2 / ||G_l||_F^2`, leading directions first.

    Each matrix is normalized, so that none dominates the others; zero matrices do not count. Signs are canonical: the
    largest entry of each row of A and each column of B is positive. Large matrices are first truncated to their leading
    singular parts.

    Raises:
        ValueError: if the rank exceeds a side.

    Reference: for one matrix, Eckart & Young 1936; for several, higher-order orthogonal iteration from the HOSVD, De
    Lathauwer, De Moor & Vandewalle 2000.
    """
    matrices = _nonzero(matrices, rank)
    if len(matrices) == 1:
        left, _, right = leading_svd(matrices[0], rank, seed)
        return left * canonical_signs(left), right
    stack, outer, inner = _compressed(matrices, rank, seed)
    columns, rows = _tucker(stack, rank, seed)
    return _in_convention(columns, rows, outer, inner)


def paired_frames(
    matrices: Sequence[Matrix],  # (m, n) each, or (m, k) and (k, n) whose product it is
    rank: int,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:  # (m, rank) with unit columns, (rank, n) with unit rows, float64
    """Return B and A such that each normalized matrix is close to `B diag(d_l) A`, with its own diagonal d_l.

    For one matrix these are its leading singular vectors. For several, they come from the separated representation over
    layers, rows and columns: the CP decomposition of the stack, by TensorLy, starting from the leading frames.

    Reference: Beylkin & Mohlenkamp 2005 (separated representations); Carroll & Chang 1970 (CP).
    """
    matrices = _nonzero(matrices, rank)
    if len(matrices) == 1:
        return leading_frames(matrices, rank, seed)
    stack, outer, inner = _compressed(matrices, rank, seed)
    before = _tucker(stack, rank, seed)
    draws = np.random.default_rng(seed).standard_normal((len(stack), rank))
    start = CPTensor((np.ones(rank), [draws, *(side.numpy().copy() for side in before)]))
    with _converging_numpy():
        terms = parafac(stack.numpy(), rank, init=start, n_iter_max=SWEEPS, tol=TOLERANCE, l2_reg=PENALTY)
    weights, columns, rows = (torch.from_numpy(factor.copy()) for factor in terms.factors)
    sizes = weights.norm(dim=0) * columns.norm(dim=0) * rows.norm(dim=0)
    order = sizes.argsort(descending=True, stable=True)
    # If the matrices have fewer directions, the penalty drives a term to zero: keep the initial pair of such a term.
    gone = sizes <= sizes.max() * torch.finfo(sizes.dtype).eps
    columns, rows = (
        torch.where(gone, old, new / new.norm(dim=0))[:, order]
        for old, new in zip(before, (columns, rows), strict=True)
    )
    return _in_convention(columns, rows, outer, inner)


def _tucker(stack: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:  # (p, rank), (q, rank), orthonormal
    with _converging_numpy():
        (_, (left, right)), _ = partial_tucker(
            stack.numpy(), [rank, rank], modes=[1, 2], tol=TOLERANCE, random_state=seed
        )
    return torch.from_numpy(left.copy()), torch.from_numpy(right.copy())


def _in_convention(
    columns: Tensor, rows: Tensor, outer: Tensor | None, inner: Tensor | None
) -> tuple[Tensor, Tensor]:  # (p, rank), (q, rank), (m, p), (n, q) -> (m, rank), (rank, n)
    if outer is not None and inner is not None:
        columns = outer @ columns
        rows = inner @ rows
    return columns * canonical_signs(columns), (rows * canonical_signs(rows)).T.contiguous()


def energy_between(
    matrix: Matrix,  # (m, n)
    rows: Tensor,  # A, (r, n)
    columns: Tensor | None = None,  # B, (m, r)
) -> float:
    """Return the share of a matrix's energy, `||G||_F^2`, in the span of the rows, and of the columns if given.

    Of a zero matrix, as of a dead layer, it is 1: an update of zero is all of it.

    Raises:
        ValueError: if the matrix is not finite.
    """
    norm = norm_of(matrix)
    if not isfinite(norm):
        raise ValueError(f"expected a finite matrix, got one of norm {norm}")
    basis = torch.linalg.qr(rows.T).Q
    held = matrix.double() @ basis if isinstance(matrix, Tensor) else matrix[0] @ (matrix[1] @ basis)
    if columns is not None:
        held = torch.linalg.qr(columns).Q.T @ held
    return float(held.square().sum()) / norm**2 if norm else 1.0


def core_between(matrix: Matrix, b: Tensor, a: Tensor) -> Tensor:  # (m, n), (m, r), (r, n) -> (r, r)
    """Return the core R that minimizes `||matrix - B R A||_F`; of several, the smallest."""
    return _between(matrix, torch.linalg.pinv(b).T, torch.linalg.pinv(a).T)


def diagonal_between(matrix: Matrix, b: Tensor, a: Tensor) -> Tensor:  # (m, n), (m, r), (r, n) -> (r,)
    """Return the diagonal d that minimizes `||matrix - B diag(d) A||_F`; of several, the smallest."""
    gram = (b.T @ b) * (a @ a.T)
    return torch.linalg.lstsq(gram, _between(matrix, b, a).diagonal()[:, None], driver="gelsd").solution[:, 0]


def _between(matrix: Matrix, left: Tensor, right: Tensor) -> Tensor:  # (r, r)
    if isinstance(matrix, Tensor):
        return left.T @ matrix.detach().double() @ right.T
    return (left.T @ matrix[0]) @ (matrix[1] @ right.T)


def _compressed(matrices: Sequence[Matrix], rank: int, seed: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the stack (L, p, q) of normalized, compressed matrices, and the bases (m, p) and (n, q) that expand it."""
    dense = [matrix for matrix in matrices if isinstance(matrix, Tensor) and matrix.numel() <= LARGE]
    if len(dense) == len(matrices):
        normalized = [matrix.detach().to("cpu", torch.float64) / norm_of(matrix) for matrix in dense]
        return torch.stack(normalized), None, None
    pairs = []
    for matrix in matrices:
        norm = norm_of(matrix)
        # Beyond the inner width of a pair there are only zeros. All bases together need `rank` directions.
        width = min(shape_of(matrix)) if isinstance(matrix, Tensor) else matrix[0].shape[1]
        count = min(2 * rank + OVERSAMPLED, max(width, rank), *shape_of(matrix))
        left, values, right = leading_svd(matrix, count, seed)
        pairs.append((left * (values / norm), right))
    outer = torch.linalg.qr(torch.cat([left for left, _ in pairs], dim=1)).Q
    inner = torch.linalg.qr(torch.cat([right for _, right in pairs]).T).Q
    return torch.stack([(outer.T @ left) @ (right @ inner) for left, right in pairs]), outer, inner


def _nonzero(matrices: Sequence[Matrix], rank: int) -> list[Matrix]:
    check_rank(rank, *shape_of(matrices[0]))
    return [matrix for matrix in matrices if norm_of(matrix)]
