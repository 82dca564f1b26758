"""The update of a short training run, not only its directions: training goes on from where that run ended."""

import torch
from torch import Tensor

from lsr.algebra.frames import core_between, diagonal_between
from lsr.algebra.separable import balance, nearest_kron_sum, pad_columns
from lsr.algebra.spectrum import Matrix, leading_svd
from lsr.init.directions import matrices_of
from lsr.init.initialization import Source, Start


def start(source: Source) -> Start:
    """Return the sums nearest to both sides of the update's truncated SVD: with one factor a side, that SVD itself.

    Raises:
        ValueError: if there is no update, or it is zero, not finite or too small.
    """
    matrices_of([source])
    form = source.form
    left, values, right = leading_svd(_update(source), form.rank, source.seed)
    roots = (values / source.scaling).sqrt()
    columns, rows = pad_columns((left * roots).T, form.out_width).T, pad_columns(roots[:, None] * right, form.in_width)
    a = nearest_kron_sum(rows, form.rank_shape, form.in_shape, form.separation_rank)
    b = nearest_kron_sum(columns, form.out_shape, form.rank_shape, form.separation_rank)
    return Start(balance(*a), balance(*b))


def core(
    source: Source,
    left: Tensor,  # B, (m, r)
    right: Tensor,  # A, (r, n)
) -> Tensor:  # (r, r), or (r,) if the directions are paired
    """Return the core R of min ||U - scaling * B R A||_F, between the frames as they are stored.

    Raises:
        ValueError: if the update is not finite.
    """
    between = diagonal_between if source.paired else core_between
    return between(_update(source), left.double(), right.double()) / source.scaling


def _update(source: Source) -> Matrix:
    """Return the update that a source has, in float64 on the CPU.

    Raises:
        ValueError: if it is not finite.
    """
    matrix = source.statistic
    assert matrix is not None
    parts = [part.detach().to("cpu", torch.float64) for part in ((matrix,) if isinstance(matrix, Tensor) else matrix)]
    if not all(torch.isfinite(part).all() for part in parts):
        raise ValueError("the update is not finite")
    return parts[0] if len(parts) == 1 else (parts[0], parts[1])
