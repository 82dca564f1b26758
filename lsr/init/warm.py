"""Warm starts: initial factors and cores that approximate the update of a short LoRA run."""

from torch import Tensor

from lsr.algebra.separable import balance
from lsr.algebra.spectrum import core_between, diagonal_between, leading_svd
from lsr.init.context import InitContext, InitialFactors, matrices_of
from lsr.init.directions import nearest_factors


def warm_factors(context: InitContext) -> InitialFactors:
    """Return the sums nearest to both sides of the update's truncated SVD: with one factor per side, the SVD itself."""
    (matrix,) = matrices_of([context])
    left, values, right = leading_svd(matrix, context.form.rank, context.seed)
    roots = (values / context.scaling).sqrt()
    a, b = nearest_factors(left * roots, roots[:, None] * right, context.form)
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
