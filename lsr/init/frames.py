"""Orthonormal frames around a core, in the form of an adapter's factors: for one layer, or for all that share them."""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

from lsr.algebra.fit import fit_row_space
from lsr.algebra.frames import leading_frames, paired_frames
from lsr.algebra.separable import kron_sum, pad_columns
from lsr.algebra.shapes import Form
from lsr.algebra.spectrum import Matrix
from lsr.init.initialization import Source, Start


def framed(matrices: Sequence[Matrix], source: Source) -> Start:
    """Return the frames that capture most of one matrix, or of several jointly, in the form of the source.

    Raises:
        ValueError: as `lsr.algebra.frames.leading_frames`.
    """
    form = source.form
    frames = (paired_frames if source.paired else leading_frames)(matrices, form.rank, source.seed)
    return as_factors(*frames, form, source.seed)


def as_factors(
    left: Tensor,  # (m, r), unit columns
    right: Tensor,  # (r, n), unit rows
    form: Form,
    seed: int,
) -> Start:
    """Return factors with B spanning the columns of `left` and A the rows of `right`, both of norm sqrt(r).

    With one factor per side these are `left` and `right` themselves; with more, the nearest sums of `separation_rank`
    Kronecker products. The basis within a frame is free, because a core can learn any change of basis.
    """
    if len(form.rank_shape) == 1:
        return Start([right[None].contiguous()], [left[None].contiguous()], 0.0)
    a, error_a = _fitted(right, form, form.in_shape, seed)
    b, error_b = _fitted(left.T, form, form.out_shape, seed)
    return Start(a, [factor.mT.contiguous() for factor in b], max(error_a, error_b))


def _fitted(rows: Tensor, form: Form, width_shape: tuple[int, ...], seed: int) -> tuple[list[Tensor], float]:
    padded = pad_columns(rows, torch.Size(width_shape).numel())
    fit = fit_row_space(padded, form.rank_shape, width_shape, form.separation_rank, seed=seed)
    return unit(fit.a, rows.shape[1]), fit.error


def unit(
    factors: Sequence[Tensor],  # (s, r_i, n_i) each
    width: int,  # how many of the n_1 * ... * n_D columns are used
) -> list[Tensor]:
    """Scale all factors equally, such that the rows of their sum have unit root-mean-square norm."""
    full = kron_sum(*factors)[:, :width]
    scale = (sqrt(len(full)) / torch.linalg.matrix_norm(full)) ** (1 / len(factors))
    return [factor * scale for factor in factors]


def random_frames(sources: Sequence[Source]) -> Start:
    """Draw orthonormal frames with one factor per side; with more, Gaussian factors of the same norm."""
    source = sources[0]
    form = source.form

    def draw(width_shape: tuple[int, ...]) -> list[Tensor]:
        sizes = zip(form.rank_shape, width_shape, strict=True)
        return [
            torch.randn(form.separation_rank, r, n, generator=source.generator, dtype=torch.float64) for r, n in sizes
        ]

    # Name the device: under `with torch.device("meta")` nothing would be drawn.
    with torch.device("cpu"):
        a, b = draw(form.in_shape), draw(form.out_shape)
    if len(form.rank_shape) == 1:
        a, b = ([torch.linalg.qr(side[0][0].T).Q.T[None].contiguous()] for side in (a, b))
    else:
        a, b = unit(a, form.in_features), unit(b, form.out_features)
    return Start(a, [factor.mT.contiguous() for factor in b])
