"""The interface of an initialization: what it reads of a layer and what it returns; and the usual one, from a seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lsr.algebra.separable import Form
from lsr.algebra.spectrum import Matrix


@dataclass(frozen=True)
class Source:
    """What an initialization may read; the same source gives the same bytes."""

    form: Form
    # (m, n): what it reads, the weight, or of examples the mean of dL/dW or the update of a short training run. It is a
    # function, because a quantized weight is dequantized only where it is read.
    matrix: Callable[[], Matrix]
    scaling: float = 1.0
    seed: int = 0  # of randomized decompositions
    generator: torch.Generator | None = None  # for random draws; None: torch's global one
    zero: bool = True  # B1 = 0 where B is drawn
    paired: bool = False  # frames for a diagonal core: the i-th direction of B belongs to the i-th of A


@dataclass(frozen=True)
class Start:
    """Initial factors."""

    a: list[Tensor]  # (s, r_i, n_i) each
    b: list[Tensor]  # (s, m_i, r_i) each


class Initialization(NamedTuple):
    """An initialization scheme.

    `start` returns trainable factors with B A = 0, and `frames` the frames around a core, for one layer or for all that
    share them.

    A scheme with a `core` goes on from the short training run whose update it reads: the head stays as trained, `start`
    returns factors of the update, and `core` the best core between the frames of a layer. Otherwise the core is zero.
    """

    reads: Literal["seed", "weight", "gradient", "update"]
    start: Callable[[Source], Start]
    frames: Callable[[Sequence[Source]], Start]
    core: Callable[[Source, Tensor, Tensor], Tensor] | None = None  # of B (m, r) and A (r, n)

    @property
    def goes_on(self) -> bool:
        """Whether the adapter begins with the update of a short training run, and the head as trained by it."""
        return self.core is not None


def random_start(source: Source) -> Start:
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


def random_frames(sources: Sequence[Source]) -> Start:
    """Draw orthonormal frames around a core, for one layer or for all that share them."""
    form, generator = sources[0].form, sources[0].generator

    def draw(width: int) -> Tensor:  # (width, r), orthonormal columns
        return torch.linalg.qr(torch.randn(form.rank, width, generator=generator, dtype=torch.float64).T).Q

    # Name the device: under `with torch.device("meta")` nothing would be drawn.
    with torch.device("cpu"):
        right, left = draw(form.in_features), draw(form.out_features)
    return Start([right.T[None].contiguous()], [left[None].contiguous()])
