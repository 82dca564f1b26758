"""Initial factors and bases from the leading singular vectors of a matrix: B1, or the core between bases, is zero."""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor
from torch.nn import functional as F

from lsr.algebra.separable import FactorShapes, kron_sum, nearest_kron_sum
from lsr.algebra.spectrum import diagonalize_jointly, leading_bases
from lsr.init.context import InitContext, InitialFactors, matrices_of


def singular_factors(context: InitContext) -> InitialFactors:
    """Return A and the trained basis of B as the sums nearest to a matrix's leading directions, with LoRA's scale.

    With B1 = 0 the first step moves B along the gradient times A^T, so its gain grows with the gradient's energy in the
    rows of A.

    Reference: LoRA-GA (Wang et al. 2024, arXiv 2407.05000), LoRA-One (Zhang et al. 2025, arXiv 2502.01235).
    """
    form = context.form
    matrices = matrices_of([context])
    left, right = leading_bases(matrices, form.rank, context.seed)
    a, b = nearest_factors(left, right, form)
    # Learning rates carry over from random factors: the second ones get their norm, and A has ||A||_F^2 = r / 3, which
    # LoRA's has on average.
    size = 1 / sqrt(form.separation_rank)
    for factor in (*a[1:], *b[1:]):
        mean = factor.square().mean()
        factor *= size / mean.sqrt()
    rows = kron_sum(*a)[:, : form.in_features]
    length = torch.linalg.matrix_norm(rows)
    usual = sqrt(form.rank / 3)
    scale = usual / length
    a[0] = a[0] * scale
    b[0] = torch.zeros_like(b[0])
    return InitialFactors(a, b)


def nearest_factors(
    left: Tensor,  # B (m, r)
    right: Tensor,  # A (r, n)
    form: FactorShapes,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the factors of A and B that are nearest to these matrices."""
    terms = form.separation_rank
    missing = form.in_width - form.in_features
    rows = F.pad(right, (0, missing))
    a = nearest_kron_sum(rows, form.rank_shape, form.in_shape, terms)
    missing = form.out_width - form.out_features
    columns = F.pad(left, (0, 0, 0, missing))
    b = nearest_kron_sum(columns, form.out_shape, form.rank_shape, terms)
    return a, b


def singular_bases(contexts: Sequence[InitContext]) -> InitialFactors:
    """Return the leading singular vectors of a matrix, or joint ones over several layers.

    Singular values are dropped: bases scaled by them learned less.

    Reference: LoRA-XS (Bałazy et al. 2024, arXiv 2405.17604), which uses the weight and scales B; LoRA-SB (Ponkshe et
    al. 2024, arXiv 2411.19557), which uses the first full gradient.
    """
    first = contexts[0]
    find = diagonalize_jointly if first.is_diagonal else leading_bases
    matrices = matrices_of(contexts)
    left, right = find(matrices, first.form.rank, first.seed)
    return InitialFactors.dense(right, left)
