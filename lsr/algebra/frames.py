"""Frames: orthonormal bases of a few outputs and inputs that hold most of a matrix, or of several at once.

For one matrix they are its leading singular vectors. For several, stacked to a tensor (L, m, n), they are the two
factors of its Tucker decomposition over rows and columns: each matrix is then B R_l A, with a core R_l of its own.
"""

from collections.abc import Sequence

import numpy as np
import tensorly as tl
import torch
from tensorly.cp_tensor import CPTensor
from tensorly.decomposition import parafac, partial_tucker
from torch import Tensor

from lsr.algebra import spectrum
from lsr.algebra.separable import canonical_signs
from lsr.algebra.spectrum import Matrix, leading_svd, norm_of, shape_of, trailing_part

OVERSAMPLED = 16  # singular vectors beside twice the rank that stand for a large matrix
SWEEPS = 200
PENALTY = 1e-3  # keeps terms of CP from cancelling, as in `lsr.algebra.separable`
TOLERANCE = 1e-6  # change of the relative error, below which the iteration stops


def leading_frames(
    matrices: Sequence[Matrix],  # (m, n) each, or (m, k) and (k, n) whose product it is
    rank: int,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:  # (m, rank) with orthonormal columns, (rank, n) with orthonormal rows, float64
    """Return B and A that maximize `sum_l ||B^T G_l A^T||_F^2 / ||G_l||_F^2`, leading directions first.

    Each matrix counts with norm 1, so that none drowns the others. Signs are canonical: the largest entry of each row
    of A and of each column of B is positive. Large matrices are first replaced by their leading singular parts.

    Raises:
        ValueError: if the rank exceeds a side, or a matrix is zero or not finite.

    Reference: for one, Eckart & Young 1936; for several, higher-order orthogonal iteration from the HOSVD, De
    Lathauwer, De Moor & Vandewalle 2000.
    """
    _check(matrices, rank)
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
    """Return B and A such that `B diag(d_l) A` is near each matrix, of norm 1, with a diagonal of its own.

    For one matrix these are its leading singular vectors. For several it is their separated representation over layers,
    rows and columns: the CP decomposition of the stack, which TensorLy finds from its leading frames.

    Raises:
        ValueError: as `leading_frames`.

    Reference: Beylkin & Mohlenkamp 2005 (separated representations); Carroll & Chang 1970 (CP).
    """
    if len(matrices) == 1:
        return leading_frames(matrices, rank, seed)
    _check(matrices, rank)
    stack, outer, inner = _compressed(matrices, rank, seed)
    before = _tucker(stack, rank, seed)
    draws = np.random.default_rng(seed).standard_normal((len(stack), rank))
    start = CPTensor((np.ones(rank), [draws, *(side.numpy().copy() for side in before)]))
    with tl.backend_context("numpy", local_threadsafe=True):
        found = parafac(stack.numpy(), rank, init=start, n_iter_max=SWEEPS, tol=TOLERANCE, l2_reg=PENALTY)
    weights, columns, rows = (torch.from_numpy(factor.copy()) for factor in found.factors)
    sizes = weights.norm(dim=0) * columns.norm(dim=0) * rows.norm(dim=0)
    order = sizes.argsort(descending=True, stable=True)
    # Where the matrices have fewer directions, the penalty leaves nothing of a term: its pair stays as it was.
    gone = sizes <= sizes.max() * torch.finfo(sizes.dtype).eps
    columns, rows = (
        torch.where(gone, old, new / new.norm(dim=0))[:, order]
        for old, new in zip(before, (columns, rows), strict=True)
    )
    return _in_convention(columns, rows, outer, inner)


def _tucker(stack: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:  # (p, rank), (q, rank), orthonormal
    with tl.backend_context("numpy", local_threadsafe=True):
        (_, (left, right)), _ = partial_tucker(
            stack.numpy(), [rank, rank], modes=[1, 2], init="svd", tol=TOLERANCE, random_state=seed
        )
    return torch.from_numpy(left.copy()), torch.from_numpy(right.copy())


def _in_convention(
    columns: Tensor,  # (p, rank)
    rows: Tensor,  # (q, rank)
    outer: Tensor | None,  # (m, p)
    inner: Tensor | None,  # (n, q)
) -> tuple[Tensor, Tensor]:  # (m, rank), (rank, n)
    if outer is not None and inner is not None:
        columns, rows = outer @ columns, inner @ rows
    return columns * canonical_signs(columns), (rows * canonical_signs(rows)).T.contiguous()


def trailing_frames(
    matrices: Sequence[Tensor],  # (m, n) each
    rank: int,
) -> tuple[Tensor, Tensor]:  # (m, rank) with orthonormal columns, (rank, n) with orthonormal rows, float64
    """Return the directions of outputs and inputs in which the matrices, each with norm 1, are smallest together.

    Raises:
        ValueError: as `leading_frames`.
    """
    _check(matrices, rank)
    stack = _dense(matrices)
    _, rows = trailing_part(stack.flatten(0, 1), rank)
    _, columns = trailing_part(stack.mT.flatten(0, 1), rank)
    return columns.T.contiguous(), rows


def captured_energies(
    matrices: Sequence[Matrix],
    left: Tensor,  # (m, r), orthonormal columns
    right: Tensor,  # (r, n), orthonormal rows
) -> list[float]:
    """Return `||B^T G A^T||_F^2 / ||G||_F^2` for each matrix: the fraction that a core between the frames can hold."""
    return [float(_between(matrix, left, right).square().sum()) / norm_of(matrix) ** 2 for matrix in matrices]


def paired_energies(
    matrices: Sequence[Matrix],
    left: Tensor,  # (m, r), unit columns
    right: Tensor,  # (r, n), unit rows
) -> list[float]:
    """Return `1 - min_d ||G - B diag(d) A||_F^2 / ||G||_F^2` for each matrix: what a diagonal core can hold."""
    gram = (left.T @ left) * (right @ right.T)
    found = []
    for matrix in matrices:
        aim = _between(matrix, left, right).diagonal() / norm_of(matrix)
        found.append(float(aim @ torch.linalg.lstsq(gram, aim[:, None], driver="gelsd").solution[:, 0]))
    return found


def nested_energies(
    matrices: Sequence[Matrix],
    most: int,
    seed: int = 0,
) -> list[float]:
    """Return the mean of `captured_energies` in the first 1, 2, ... directions of the leading frames of `most`.

    For one matrix it is the cumulated spectrum; for several, frames of fewer directions could hold a little more.
    """
    left, right = leading_frames(matrices, most, seed)
    total = torch.zeros(most, dtype=torch.float64)
    for matrix in matrices:
        squares = (_between(matrix, left, right) / norm_of(matrix)).square()
        total += squares.cumsum(0).cumsum(1).diagonal()
    return (total / len(matrices)).tolist()


def _between(matrix: Matrix, left: Tensor, right: Tensor) -> Tensor:  # (r, r)
    if isinstance(matrix, Tensor):
        return left.T @ matrix.detach().double() @ right.T
    return (left.T @ matrix[0]) @ (matrix[1] @ right.T)


def _compressed(matrices: Sequence[Matrix], rank: int, seed: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the stack (L, p, q) of normed matrices, and orthonormal (m, p) and (n, q) to multiply it by."""
    if all(isinstance(matrix, Tensor) and matrix.numel() <= spectrum.LARGE for matrix in matrices):
        return _dense(matrices), None, None
    pairs = []
    for matrix in matrices:
        norm = norm_of(matrix)
        count = min(2 * rank + OVERSAMPLED, *shape_of(matrix))
        left, values, right = leading_svd(matrix, count, seed)
        pairs.append((left * (values / norm), right))
    outer = torch.linalg.qr(torch.cat([left for left, _ in pairs], dim=1)).Q
    inner = torch.linalg.qr(torch.cat([right for _, right in pairs]).T).Q
    return torch.stack([(outer.T @ left) @ (right @ inner) for left, right in pairs]), outer, inner


def _dense(matrices: Sequence[Matrix]) -> Tensor:  # (L, m, n)
    full = [matrix if isinstance(matrix, Tensor) else matrix[0] @ matrix[1] for matrix in matrices]
    return torch.stack([matrix.detach().to("cpu", torch.float64) / norm_of(matrix) for matrix in full])


def _check(matrices: Sequence[Matrix], rank: int) -> None:
    smaller = min(shape_of(matrices[0]))
    if not 1 <= rank <= smaller:
        raise ValueError(f"the rank must be in [1, {smaller}] for matrices {shape_of(matrices[0])}, got {rank}")
    for norm in map(norm_of, matrices):
        if not 0 < norm < float("inf"):
            raise ValueError(f"there are no directions to take frames from: the norm of a matrix is {norm}")
