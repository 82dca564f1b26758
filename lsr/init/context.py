"""What an initialization of a layer reads, and the initial factors that it returns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from lsr.algebra.separable import FactorShapes
from lsr.algebra.spectrum import Matrix, norm_of

Matrices = Mapping[str, Matrix]  # statistics of examples, (m, n) by layer name


@dataclass(frozen=True)
class InitContext:
    """The inputs of an initialization of a layer; equal inputs give equal bytes."""

    form: FactorShapes
    # Returns the (m, n) matrix that is read: the weight, or of examples the mean of dL/dW or the update of a short LoRA
    # run. It is a function, because a quantized weight is dequantized only where it is read.
    matrix: Callable[[], Matrix]
    scaling: float = 1.0
    seed: int = 0  # seeds randomized decompositions
    generator: torch.Generator | None = None  # draws random factors; None: torch's global generator
    core_generator: torch.Generator | None = None  # likewise for a random core
    zero: bool = True  # B1 = 0 where B is drawn
    is_diagonal: bool = False  # bases for a diagonal core: the i-th direction of B belongs to the i-th of A


@dataclass(frozen=True)
class InitialFactors:
    """Initial factors."""

    a: list[Tensor]  # (s, r_i, n_i) each
    b: list[Tensor]  # (s, m_i, r_i) each

    @classmethod
    def dense(cls, a: Tensor, b: Tensor) -> "InitialFactors":  # (r, n), (m, r)
        """Wrap dense matrices as initial factors."""
        return cls([a[None].contiguous()], [b[None].contiguous()])


def matrices_of(contexts: Sequence[InitContext]) -> list[Matrix]:
    """Return the matrices that these read.

    Raises:
        ValueError: if a matrix is not finite, or all are zero.
    """
    matrices = [context.matrix() for context in contexts]
    norm = sum(map(norm_of, matrices))
    if not isfinite(norm):
        raise ValueError("the weight, or its gradient or update over the examples, is not finite")
    if not norm:
        zero = "the weight, or its gradient or update over the examples, is zero and shows no direction"
        raise ValueError(f"{zero}; initialize it as 'random', or leave it out of target_modules")
    return matrices
