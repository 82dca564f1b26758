"""The interface of an initialization: what it reads of a layer and what it returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lsr.algebra.shapes import Form
from lsr.algebra.spectrum import Matrix


@dataclass(frozen=True)
class Source:
    """What an initialization may read; the same source gives the same bytes."""

    form: Form
    weight: Callable[[], Tensor]  # (m, n): a function, because a quantized weight is dequantized only where it is read
    scaling: float = 1.0
    seed: int = 0  # of randomized decompositions
    generator: torch.Generator | None = None  # for random draws; None: torch's global one
    statistic: Matrix | None = None  # (m, n), of examples: the mean of dL/dW, or the update of a short training run
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
