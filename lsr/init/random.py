"""Random factors at LoRA's scale, random frames around a core, and the scale that gives other factors theirs."""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

from lsr.algebra.separable import kron_sum
from lsr.algebra.shapes import Form
from lsr.init.initialization import Source, Start


def start(source: Source) -> Start:
    """Draw factors such that the entries of A have LoRA's variance, 1 / (3 in_features), and B is zero, in float32.

    A1 ~ N(0, 1/(3 n)), A2 and B2 ~ N(0, 1/s); B1 = 0. Only B1 may be zero: if B2 were too, all gradients would vanish.
    With `source.zero` false, B1 is drawn at the scale of LoRA's B, so that the fresh adapter changes the model.

    Reference: LoRA's kaiming_uniform(sqrt 5), Hu et al. 2021 (arXiv 2106.09685); here s affects only the variance.
    """
    form, second = source.form, 1 / sqrt(source.form.separation_rank)
    scales = {
        "factor_A1": 1 / sqrt(3 * form.in_features),
        "factor_A2": second,
        "factor_B1": 0.0 if source.zero else 1 / sqrt(3 * form.rank),
        "factor_B2": second,
    }
    with torch.device("cpu"):
        drawn = [
            scales[name] * torch.randn(*shape, generator=source.generator) for name, shape in form.factor_shapes.items()
        ]
    count = len(form.rank_shape)
    return Start(drawn[:count], drawn[count:])


def frames(sources: Sequence[Source]) -> Start:
    """Draw orthonormal frames around a core, for one layer or for all that share them."""
    form, generator = sources[0].form, sources[0].generator

    def draw(width: int) -> Tensor:  # (width, r), orthonormal columns
        return torch.linalg.qr(torch.randn(form.rank, width, generator=generator, dtype=torch.float64).T).Q

    # Name the device: under `with torch.device("meta")` nothing would be drawn.
    with torch.device("cpu"):
        right, left = draw(form.in_features), draw(form.out_features)
    return Start([right.T[None].contiguous()], [left[None].contiguous()])


def as_random_a(
    factors: list[Tensor],  # (s, r_i, n_i), unit terms in the second
    form: Form,
) -> list[Tensor]:
    """Scale A to ||A||_F^2 = r / 3, LoRA's expected value, and its second factor to the norm of a random one.

    Learning rates then carry over from random initialization.
    """
    scaled = _with_random_second(factors, form)
    length = torch.linalg.matrix_norm(kron_sum(*scaled)[:, : form.in_features])
    return [scaled[0] * (sqrt(form.rank / 3) / length), *scaled[1:]]


def as_zero_b(
    factors: list[Tensor],  # (s, m_i, r_i), unit terms in the second
    form: Form,
) -> list[Tensor]:
    """Set B1 to zero, and scale B2 to the norm of a random one."""
    scaled = _with_random_second(factors, form)
    return [torch.zeros_like(scaled[0]), *scaled[1:]]


def _with_random_second(factors: list[Tensor], form: Form) -> list[Tensor]:
    scale = 1 / sqrt(form.separation_rank)
    return [factors[0], *(factor * (scale / factor.square().mean().sqrt()) for factor in factors[1:])]
