"""Random initial factors, bases and cores, from the seed alone."""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

from lsr.init.context import InitContext, InitialFactors


def random_factors(context: InitContext) -> InitialFactors:
    """Draw factors such that the entries of A have LoRA's variance, 1 / (3 in_features), and B is zero, in float32.

    A1 ~ N(0, 1/(3 n)), A2 and B2 ~ N(0, 1/s); B1 = 0. Only B1 may be zero: if B2 were too, all gradients would vanish.
    With `context.zero` false, B1 is drawn at the scale of LoRA's B, so that the fresh adapter changes the model.

    Reference: LoRA's kaiming_uniform(sqrt 5), Hu et al. 2021 (arXiv 2106.09685); here s affects only the variance.
    """
    form = context.form
    second = 1 / sqrt(form.separation_rank)
    scales = {
        "factor_A1": 1 / sqrt(3 * form.in_features),
        "factor_A2": second,
        "factor_B1": 0.0 if context.zero else 1 / sqrt(3 * form.rank),
        "factor_B2": second,
    }
    factors = []
    with torch.device("cpu"):
        for name, shape in form.factor_shapes.items():
            drawn = torch.randn(*shape, generator=context.generator)
            factors.append(scales[name] * drawn)
    count = len(form.rank_shape)
    return InitialFactors(factors[:count], factors[count:])


def random_bases(contexts: Sequence[InitContext]) -> InitialFactors:
    """Draw orthonormal bases around a core, for one layer or for all that share them."""
    form = contexts[0].form
    generator = contexts[0].generator

    def draw(width: int) -> Tensor:  # (width, r), orthonormal columns
        drawn = torch.randn(form.rank, width, generator=generator, dtype=torch.float64)
        basis, _ = torch.linalg.qr(drawn.T)
        return basis

    # Name the device: under `with torch.device("meta")` nothing would be drawn.
    with torch.device("cpu"):
        right = draw(form.in_features)
        left = draw(form.out_features)
    return InitialFactors.dense(right.T, left)


def fresh_core(
    context: InitContext, b: Tensor, a: Tensor
) -> Tensor:  # (m, r), (r, n) -> (r, r), or (r,) of a diagonal one
    """Return a core of zeros; with `context.zero` false a random one, whose entries have the variance 1 / r."""
    rank = context.form.rank
    shape = [rank] if context.is_diagonal else [rank, rank]
    with torch.device("cpu"):
        if context.zero:
            return torch.zeros(shape)
        drawn = torch.randn(shape, generator=context.core_generator)
        return drawn / rank**0.5
