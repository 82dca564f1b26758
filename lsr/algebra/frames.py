"""Frames: orthonormal bases of a few output and input directions that capture most of one matrix, or several jointly.

For one matrix they are its leading singular vectors. For several, stacked into a tensor (L, m, n), they are the two
factors of its Tucker decomposition over rows and columns: each matrix is approximately B R_l A, with its own core R_l.
"""

from collections.abc import Sequence
from math import isfinite

import numpy as np
import torch
from tensorly.cp_tensor import CPTensor
from tensorly.decomposition import parafac, partial_tucker
from torch import Tensor

from lsr.algebra import spectrum
from lsr.algebra.spectrum import Matrix, canonical_signs, check_rank, converging_numpy, leading_svd, norm_of, shape_of

OVERSAMPLED = 16  # a large matrix is compressed to twice the rank plus this many singular vectors
SWEEPS = 200
# Relative to a stack of norm 1: parafac solves normal equations, which two nearly equal terms make singular.
PENALTY = 1e-3
TOLERANCE = 1e-6  # the iteration stops when the relative error changes by less


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
    with converging_numpy():
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
    with converging_numpy():
        (_, (left, right)), _ = partial_tucker(
            stack.numpy(), [rank, rank], modes=[1, 2], tol=TOLERANCE, random_state=seed
        )
    return torch.from_numpy(left.copy()), torch.from_numpy(right.copy())


def _in_convention(
    columns: Tensor, rows: Tensor, outer: Tensor | None, inner: Tensor | None
) -> tuple[Tensor, Tensor]:  # (p, rank), (q, rank), (m, p), (n, q) -> (m, rank), (rank, n)
    if outer is not None and inner is not None:
        columns, rows = outer @ columns, inner @ rows
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
    dense = [matrix for matrix in matrices if isinstance(matrix, Tensor) and matrix.numel() <= spectrum.LARGE]
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
