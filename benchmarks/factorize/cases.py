"""The calls to measure: the initializations of lsr.init, and torch's decompositions of the same matrices."""

from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from lsr.algebra.shapes import Form, split_width
from lsr.init import INITIALIZATIONS
from lsr.init.initialization import Source, Start

FORMS = {4: ((2, 2), (2, 2, 1)), 16: ((4, 4), (4, 2, 2))}  # rank shapes of two factors and of three
SEPARATION_RANKS = {4: 4, 16: 16}  # by rank
SVD, LOWRANK = "torch.linalg.svd", "torch.svd_lowrank"
LEADING = 256  # singular values above the noise
BLOCK = 64


class Case(NamedTuple):
    """A call to measure: an initialization, or a decomposition of torch."""

    method: str  # a word of `lsr.init.INITIALIZATIONS`, SVD or LOWRANK
    size: int
    rank_shape: tuple[int, ...] = ()
    separation_rank: int = 0

    @property
    def name(self) -> str:
        """The method in words."""
        factors = f", {len(self.rank_shape)} factors" if len(self.rank_shape) > 2 else ""
        return f"{self.method}{factors}"

    @property
    def rank(self) -> int:
        """The rank r, 0 for a full SVD."""
        return prod(self.rank_shape) if self.rank_shape else 0

    @property
    def form(self) -> Form:
        """The shapes of the adapter of a square layer."""
        shape = split_width(self.size, self.rank_shape)
        return Form(self.rank_shape, shape, shape, self.separation_rank, self.size, self.size)

    def run(self, weight: Tensor) -> Start | None:
        """Decompose a weight (size, size); return the initial factors, or None for torch's decompositions."""
        if self.method == SVD:
            torch.linalg.svd(weight)
        elif self.method == LOWRANK:
            torch.svd_lowrank(weight, q=self.rank, niter=5)
        else:
            return INITIALIZATIONS[self.method].start(Source(self.form, lambda: weight))
        return None


def cases(size: int) -> list[Case]:
    """Return the calls to measure on a weight of this size: a full SVD first, then by rank."""
    found = [Case(SVD, size)]
    for rank, (two, three) in FORMS.items():
        terms = SEPARATION_RANKS[rank]
        found.append(Case(LOWRANK, size, two))
        found += [Case("principal", size, shape, terms) for shape in (two, three)]
    return found


@lru_cache(maxsize=1)
def decaying_weight(size: int, seed: int = 0) -> Tensor:  # (size, size), float32
    """Return a weight whose singular values fall as k^-0.7 down to a floor of noise, determined by the seed.

    Its rows are drawn in blocks, so that only the weight itself is large and drawing it does not raise the peak memory
    that is measured afterwards.
    """
    generator = torch.Generator().manual_seed(seed)
    scales = torch.arange(1, LEADING + 1) ** -0.7
    right = scales[:, None] * torch.randn(LEADING, size, generator=generator)
    weight = torch.empty(size, size)
    for rows in weight.split(BLOCK):
        left = torch.randn(len(rows), LEADING, generator=generator)
        rows.copy_(left @ right + torch.randn(len(rows), size, generator=generator))
    return weight
