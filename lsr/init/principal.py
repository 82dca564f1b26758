"""A and B fitted jointly to the weight: PiSSA in Kronecker form. The initial update is folded."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lsr.algebra.fit import fit_product
from lsr.algebra.separable import balance, pad_columns
from lsr.init.frames import framed
from lsr.init.initialization import Source, Start


def start(source: Source) -> Start:
    """Return the factors of min ||W - scaling * B A||_F, found by alternating least squares.

    Raises:
        ValueError: if the weight is zero, not finite or too small.

    Reference: PiSSA (Meng et al. 2024, arXiv 2404.02948).
    """
    form = source.form
    weight = source.weight().detach().to("cpu", torch.float64)
    padded = pad_columns(pad_columns(weight, form.in_width).T, form.out_width).T
    return fitted(padded, source)


def frames(sources: Sequence[Source]) -> Start:
    """Return the leading singular vectors of the weight, or joint ones over several weights.

    Raises:
        ValueError: as `start`.

    Reference: LoRA-XS (Bałazy et al. 2024, arXiv 2405.17604), whose B is scaled by the singular values.
    """
    return framed([source.weight() for source in sources], sources[0])


def fitted(
    target: Tensor | tuple[Tensor, Tensor],  # (M, N), or (M, r) and (r, N) whose product it is; padded
    source: Source,
) -> Start:
    """Return the factors nearest to a matrix, with the scaling distributed over them."""
    form = source.form
    fit = fit_product(target, form.out_shape, form.rank_shape, form.in_shape, form.separation_rank, seed=source.seed)
    return unscaled(Start(fit.a, fit.b, fit.error), source)


def unscaled(start: Start, source: Source) -> Start:
    """Return balanced factors with the scaling divided out: scaling * B A is what B A was."""
    share = source.scaling ** (-0.5 / len(source.form.rank_shape))  # each factor's share of the scaling
    a, b = ([share * factor for factor in balance(*side)] for side in (start.a, start.b))
    return replace(start, a=a, b=b)
