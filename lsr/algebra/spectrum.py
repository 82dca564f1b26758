"""Singular subspaces of matrices, the targets of initializations, and bases, in float64, with canonical signs.

Bases are orthonormal, of a few output and input directions that capture most of one matrix, or several jointly.
For one matrix they are its leading singular vectors. For several, stacked into a tensor (L, m, n), they are the two
factors of its Tucker decomposition over rows and columns: each matrix is approximately B R_l A, with its own core R_l.

The sign of a pair of singular vectors is arbitrary and differs between LAPACK drivers, yet it changes the nearest
Kronecker sum. So the largest entry of each right vector is made positive.

LAPACK's fast driver, gesdd, does not converge for some finite matrices, often of low rank. Which ones depends on the
BLAS and the processor. The slower gesvd does, so it takes over when gesdd gives up, in NumPy, which TensorLy uses here,
and in torch. Reports: numpy/numpy#12941, OpenMathLib/OpenBLAS#3044.
"""

from collections.abc import Iterable, Sequence
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

Pair = tuple[Tensor, Tensor]
Matrix = Tensor | Pair  # (M, N), or (M, k) and (k, N) whose product it is

# With more entries, a seeded randomized SVD in float32 captures nearly as much as a full one, and is far faster.
LARGE = 2**20
SEEDS = 2**32  # seeds of numpy; torch's have no limit
OVERSAMPLED = 16  # a large matrix is compressed to twice the rank plus this many singular vectors
SWEEPS = 200
# Relative to a stack of norm 1: parafac solves normal equations, which two nearly equal terms make singular.
PENALTY = 1e-3
TOLERANCE = 1e-6  # the iteration stops when the relative error changes by less


_slow_svd = partial(scipy.linalg.svd, lapack_driver="gesvd")


class _ConvergingBackend(NumpyBackend, backend_name="numpy-converging"):  # type: ignore[call-arg, misc]
    @staticmethod
    def svd(matrix: np.ndarray, full_matrices: bool = True) -> tuple[np.ndarray, ...]:
        try:
            return np.linalg.svd(matrix, full_matrices=full_matrices)
        except np.linalg.LinAlgError:
            return _slow_svd(matrix, full_matrices=full_matrices)


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
    if isinstance(matrix, Tensor):
        left, values, right = _svd_of_dense(matrix, rank, seed)
    else:
        left, values, right = _svd_of_pair(*matrix, rank)
    return _fix_signs(left, values, right)


def full_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # (M, N) -> (M, k), (k,), (k, N), k the smaller side
    """Return the whole SVD, with canonical signs; the matrix is on the CPU, and must be finite."""
    return _fix_signs(*_svd(matrix))


def _fix_signs(left: Tensor, values: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    signs = canonical_signs(right.T)
    return left * signs, values, right * signs[:, None]


def _svd(matrix: Tensor) -> tuple[Tensor, ...]:
    try:
        return torch.linalg.svd(matrix, full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return _tensors(_slow_svd(matrix.numpy(), full_matrices=False))


def _svd_of_dense(
    matrix: Tensor,  # (M, N)
    rank: int,
    seed: int,
) -> tuple[Tensor, ...]:
    dense = matrix.detach().cpu()
    if dense.numel() > LARGE:
        dense = dense.float()
        method = "randomized_svd"
        options = {"random_state": seed % SEEDS, "n_iter": 5, "n_oversamples": 16}
    else:
        dense = dense.double()
        method = "truncated_svd"
        options = {}
    with _converging_numpy():
        parts = svd_interface(dense.numpy(), method, n_eigenvecs=rank, **options)
    return tuple(part.double() for part in _tensors(parts))


def _svd_of_pair(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, ...]:
    missing = rank - left.shape[1]
    if missing > 0:  # pad with zeros, whose singular vectors complete the bases
        left = F.pad(left, (0, missing))
        right = F.pad(right, (0, 0, 0, missing))
    q_left, core_left = torch.linalg.qr(left)
    q_right, core_right = torch.linalg.qr(right.T)
    core = core_left @ core_right.T
    u, values, vt = _svd(core)
    left = q_left @ u
    right = vt @ q_right.T
    return left[:, :rank], values[:rank], right[:rank]


def _tensors(arrays: Iterable[np.ndarray]) -> tuple[Tensor, ...]:
    """Return copies of arrays, whose memory may have any order."""
    return tuple(torch.from_numpy(array.copy()) for array in arrays)


def check_rank(rank: int, rows: int, columns: int) -> None:
    """Reject a rank above the sides of a matrix.

    Raises:
        ValueError: names the allowed ranks.
    """
    most = min(rows, columns)
    if not 1 <= rank <= most:
        raise ValueError(f"the rank must be in [1, {most}], the smaller side of {rows} x {columns}, got {rank}")


def canonical_signs(columns: Tensor) -> Tensor:  # (size, s) -> (s,)
    """Return the signs that make the largest entry of each column positive."""
    places = columns.abs().argmax(dim=0, keepdim=True)
    largest = columns.gather(0, places)[0]
    signs = torch.where(largest < 0, -1.0, 1.0)
    return signs.to(columns.dtype)


def shape_of(matrix: Matrix) -> tuple[int, int]:
    """Return the shape (M, N) of a matrix, given as a tensor or as two factors."""
    if isinstance(matrix, Tensor):
        return len(matrix), matrix.shape[1]
    left, right = matrix
    return len(left), right.shape[1]


def norm_of(matrix: Matrix) -> float:
    """Return the Frobenius norm; it is not finite if an entry is not.

    For a pair it comes from the R factors of QR decompositions: nothing cancels, nothing large is formed.
    """
    if isinstance(matrix, Tensor):
        return float(torch.linalg.vector_norm(matrix.detach(), dtype=torch.float64))
    left, right = matrix
    product = _triangle(left) @ _triangle(right.T).T
    return float(torch.linalg.matrix_norm(product))


def _triangle(side: Tensor) -> Tensor:  # (rows, k) -> (k, k)
    _, triangle = torch.linalg.qr(side.detach().double(), mode="r")
    return triangle


def leading_bases(
    matrices: Sequence[Matrix],  # finite, not all zero: (m, n) each, or (m, k) and (k, n) whose product it is
    rank: int,
    seed: int = 0,
) -> Pair:  # (m, rank) with orthonormal columns, (rank, n) with orthonormal rows, float64
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
    stack, outer, inner = _compress(matrices, rank, seed)
    columns, rows = _tucker(stack, rank, seed)
    return _in_convention(columns, rows, outer, inner)


def diagonalize_jointly(
    matrices: Sequence[Matrix],  # (m, n) each, or (m, k) and (k, n) whose product it is
    rank: int,
    seed: int = 0,
) -> Pair:  # (m, rank) with unit columns, (rank, n) with unit rows, float64
    """Return B and A such that each normalized matrix is close to `B diag(d_l) A`, with its own diagonal d_l.

    For one matrix these are its leading singular vectors. For several, they come from the separated representation over
    layers, rows and columns: the CP decomposition of the stack, by TensorLy, starting from the leading bases.

    Reference: Beylkin & Mohlenkamp 2005 (separated representations); Carroll & Chang 1970 (CP).
    """
    matrices = _nonzero(matrices, rank)
    if len(matrices) == 1:
        return leading_bases(matrices, rank, seed)
    stack, outer, inner = _compress(matrices, rank, seed)
    before = _tucker(stack, rank, seed)
    draws = np.random.default_rng(seed).standard_normal((len(stack), rank))
    factors = [draws, *(side.numpy().copy() for side in before)]
    with _converging_numpy():
        terms = parafac(
            stack.numpy(),
            rank,
            init=CPTensor((np.ones(rank), factors)),
            n_iter_max=SWEEPS,
            tol=TOLERANCE,
            l2_reg=PENALTY,
        )
    weights, columns, rows = _tensors(terms.factors)
    of_columns = columns.norm(dim=0)
    of_rows = rows.norm(dim=0)
    sizes = weights.norm(dim=0) * of_columns * of_rows
    order = sizes.argsort(descending=True, stable=True)
    # If the matrices have fewer directions, the penalty drives a term to zero: keep the initial pair of such a term.
    is_gone = sizes <= sizes.max() * torch.finfo(sizes.dtype).eps
    first_columns, first_rows = before
    columns = torch.where(is_gone, first_columns, columns / of_columns)
    rows = torch.where(is_gone, first_rows, rows / of_rows)
    return _in_convention(columns[:, order], rows[:, order], outer, inner)


def _tucker(stack: Tensor, rank: int, seed: int) -> Pair:  # (p, rank), (q, rank), orthonormal
    with _converging_numpy():
        (_, factors), _ = partial_tucker(
            stack.numpy(),
            [rank, rank],
            modes=[1, 2],
            tol=TOLERANCE,
            random_state=seed,
        )
    left, right = _tensors(factors)
    return left, right


def _in_convention(
    columns: Tensor,  # (p, rank)
    rows: Tensor,  # (q, rank)
    outer: Tensor | None,  # (m, p)
    inner: Tensor | None,  # (n, q)
) -> Pair:  # (m, rank), (rank, n)
    if outer is not None and inner is not None:
        columns = outer @ columns
        rows = inner @ rows
    columns = columns * canonical_signs(columns)
    rows = rows * canonical_signs(rows)
    return columns, rows.T.contiguous()


def energy_between(
    matrix: Matrix,  # (m, n)
    rows: Tensor,  # A, (r, n)
    columns: Tensor | None = None,  # B, (m, r)
) -> float:
    """Return the share of a matrix's energy, `||G||_F^2`, in the span of the rows, and of the columns if given.

    For a zero matrix, as of a dead layer, it is 1, because a zero update represents it.

    Raises:
        ValueError: if the matrix is not finite.
    """
    norm = norm_of(matrix)
    if not isfinite(norm):
        raise ValueError(f"expected a finite matrix, got one of norm {norm}")
    if not norm:
        return 1.0
    basis, _ = torch.linalg.qr(rows.T)
    if isinstance(matrix, Tensor):
        held = matrix.double() @ basis
    else:
        left, right = matrix
        held = left @ (right @ basis)
    if columns is not None:
        outputs, _ = torch.linalg.qr(columns)
        held = outputs.T @ held
    energy = held.square().sum()
    return float(energy) / norm**2


def core_between(matrix: Matrix, b: Tensor, a: Tensor) -> Tensor:  # (m, n), (m, r), (r, n) -> (r, r)
    """Return the core R that minimizes `||matrix - B R A||_F`, the one of least norm if there are several."""
    left = torch.linalg.pinv(b)
    right = torch.linalg.pinv(a)
    return _between(matrix, left.T, right.T)


def diagonal_between(matrix: Matrix, b: Tensor, a: Tensor) -> Tensor:  # (m, n), (m, r), (r, n) -> (r,)
    """Return the diagonal d that minimizes `||matrix - B diag(d) A||_F`, the one of least norm if there are several."""
    gram = (b.T @ b) * (a @ a.T)
    target = _between(matrix, b, a).diagonal()
    solution, *_ = torch.linalg.lstsq(gram, target[:, None], driver="gelsd")
    return solution[:, 0]


def _between(matrix: Matrix, left: Tensor, right: Tensor) -> Tensor:  # (r, r)
    if isinstance(matrix, Tensor):
        return left.T @ matrix.detach().double() @ right.T
    outer, inner = matrix
    return (left.T @ outer) @ (inner @ right.T)


def _compress(
    matrices: Sequence[Matrix],
    rank: int,
    seed: int,
) -> tuple[Tensor, Tensor | None, Tensor | None]:  # (L, p, q), (m, p), (n, q)
    """Return the stack of normalized, compressed matrices, and the bases that expand it."""
    small = [matrix for matrix in matrices if isinstance(matrix, Tensor) and matrix.numel() <= LARGE]
    if len(small) == len(matrices):
        normalized = [matrix.detach().to("cpu", torch.float64) / norm_of(matrix) for matrix in small]
        return torch.stack(normalized), None, None
    lefts = []
    rights = []
    for matrix in matrices:
        count = min(2 * rank + OVERSAMPLED, *shape_of(matrix))
        if not isinstance(matrix, Tensor):
            # Beyond the inner width of a pair there are only zeros. All bases together need `rank` directions.
            _, width = matrix[0].shape
            count = min(count, max(width, rank))
        left, values, right = leading_svd(matrix, count, seed)
        lefts.append(left * (values / norm_of(matrix)))
        rights.append(right)
    outer, _ = torch.linalg.qr(torch.cat(lefts, dim=1))
    inner, _ = torch.linalg.qr(torch.cat(rights).T)
    stack = [(outer.T @ left) @ (right @ inner) for left, right in zip(lefts, rights, strict=True)]
    return torch.stack(stack), outer, inner


def _nonzero(matrices: Sequence[Matrix], rank: int) -> list[Matrix]:
    check_rank(rank, *shape_of(matrices[0]))
    return [matrix for matrix in matrices if norm_of(matrix)]
