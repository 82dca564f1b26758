"""Warm starts: initial factors and cores that approximate the update of a short LoRA run."""

from torch import Tensor

from lsr.algebra.separable import balance
from lsr.algebra.spectrum import core_between, diagonal_between, leading_svd
from lsr.init.context import InitContext, InitialFactors, matrices_of
from lsr.init.directions import nearest_factors

ROUNDING = 1e-10  # singular values below this fraction of the largest are zeros with rounding errors
USUAL_NORM = 3**-0.5  # of a row of LoRA's A: its entries have the variance 1 / (3 in_features)


def warm_factors(context: InitContext) -> InitialFactors:
    """Return the sums nearest to both sides of the update's truncated SVD: with one factor per side, the SVD itself.

    Where the update has a lower rank than the adapter, the other columns of B are zero, and the rows of A have the norm
    that LoRA's have on average: if both were zero, no gradient would ever reach them.
    """
    (matrix,) = matrices_of([context])
    left, values, right = leading_svd(matrix, context.form.rank, context.seed)
    roots = (values / context.scaling).sqrt()
    rows = roots
    if len(context.form.rank_shape) == 1:
        is_zero = values <= ROUNDING * values.max()
        roots = roots.masked_fill(is_zero, 0.0)
        rows = roots.masked_fill(is_zero, USUAL_NORM)
    a, b = nearest_factors(left * roots, rows[:, None] * right, context.form)
    return InitialFactors(balance(*a), balance(*b))


def warm_core(
    context: InitContext,
    b: Tensor,  # (m, r)
    a: Tensor,  # (r, n)
) -> Tensor:  # (r, r), or (r,) of a diagonal one
    """Return the core R of min ||U - scaling * B R A||_F, with the bases in their stored dtype."""
    between = diagonal_between if context.is_diagonal else core_between
    core = between(context.matrix(), b.double(), a.double())
    return core / context.scaling
