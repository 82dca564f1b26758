"""Warm starts: initial factors and cores that approximate the update of a short LoRA run."""

from torch import Tensor

from lsr.algebra.separable import balance
from lsr.algebra.spectrum import core_between, diagonal_between, leading_svd
from lsr.init.directions import nearest_factors
from lsr.init.source import Source, Start, matrices_of


def warm_start(source: Source) -> Start:
    """Return the sums nearest to both sides of the update's truncated SVD: with one factor per side, the SVD itself."""
    (matrix,) = matrices_of([source])
    left, values, right = leading_svd(matrix, source.form.rank, source.seed)
    roots = (values / source.scaling).sqrt()
    a, b = nearest_factors(left * roots, roots[:, None] * right, source.form)
    return Start(balance(*a), balance(*b))


def warm_core(
    source: Source,
    b: Tensor,  # (m, r)
    a: Tensor,  # (r, n)
) -> Tensor:  # (r, r), or (r,) of paired ones
    """Return the core R of min ||U - scaling * B R A||_F, with the bases in their stored dtype."""
    between = diagonal_between if source.paired else core_between
    core = between(source.matrix(), b.double(), a.double())
    return core / source.scaling
