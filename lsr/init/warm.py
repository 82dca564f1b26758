"""The update of a short training run, not only its directions: training goes on from where that run ended."""

from torch import Tensor

from lsr.algebra.frames import core_between, diagonal_between
from lsr.algebra.separable import balance, nearest_kron_sum, pad_columns
from lsr.algebra.spectrum import leading_svd
from lsr.init.directions import statistics_of
from lsr.init.initialization import Source, Start


def start(source: Source) -> Start:
    """Return the sums nearest to both sides of the update's truncated SVD: with one factor a side, that SVD itself."""
    (update,), form = statistics_of([source]), source.form
    left, values, right = leading_svd(update, form.rank, source.seed)
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
    """Return the core R of min ||U - scaling * B R A||_F, between the frames as they are stored."""
    assert source.statistic is not None  # the frames are from it
    between = diagonal_between if source.paired else core_between
    return between(source.statistic, left.double(), right.double()) / source.scaling
