"""The update that an adapter adds to the weight of a linear layer, in one form for all methods."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lsr.algebra.shapes import Form
from lsr.tuner.adapter import times_core
from lsr.tuner.config import DIAGONAL


class Frames(nn.Module):
    """A (r, n) and B (m, r), which layers of one kind may share: a module, so that moving it keeps them shared."""

    a: Tensor
    b: Tensor

    def __init__(self, *, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.register_buffer("a", a)
        self.register_buffer("b", b)

    def equals(self, other: "Frames") -> bool:
        """Return whether these are the same frames, entry by entry."""
        return self is other or (self.a.equal(other.a.to(self.a)) and self.b.equal(other.b.to(self.b)))


class Update(NamedTuple):
    """The update of a layer, scaling * B R A, with A and B from `frames`, and R = 1 if there is no core.

    It has the alpha of its file rather than the scaling, which would not give back every alpha to the last bit.
    """

    frames: Frames
    alpha: float  # of a rank-stabilized LoRA sqrt(r) times its own
    core: Tensor | None = None  # (r, r), or (r,) for a diagonal

    @classmethod
    def scaled(cls, frames: Frames, scaling: float, core: Tensor | None = None) -> "Update":
        """Return an update given its scaling rather than alpha."""
        return cls(frames, scaling * _divisor(frames, core), core)

    @property
    def scaling(self) -> float:
        """The factor before B R A: alpha / r, or alpha / 8 with a diagonal core."""
        return self.alpha / _divisor(self.frames, self.core)

    @property
    def form(self) -> Form:
        """The shapes of A and B."""
        return Form.dense(len(self.frames.a), self.frames.a.shape[1], len(self.frames.b))

    def plain(self) -> "Update":
        """Return the same update without a core: itself, or folded if it has one."""
        return self if self.core is None else self.folded()

    def folded(self) -> "Update":
        """Return the same update with R A in place of A, and the scaling folded into B."""
        a = self._right()
        return Update(Frames(a=a, b=self.scaling * self.frames.b), len(a))

    def plus(self, other: "Update") -> "Update":
        """Return the sum with another update of the same layer, whose rank is the sum of theirs."""
        one, two = self.folded().frames, other.folded().frames
        a, b = torch.cat([one.a, two.a]), torch.cat([one.b, two.b], dim=1)
        return Update(Frames(a=a, b=b), len(a))

    def product(self) -> tuple[Tensor, Tensor]:  # (m, k), (k, n)
        """Return two matrices in float64 whose product is the update."""
        return self.scaling * self.frames.b.double(), self._right().double()

    def _right(self) -> Tensor:  # R A, (r, n)
        return self.frames.a if self.core is None else times_core(self.core, self.frames.a)


def _divisor(frames: Frames, core: Tensor | None) -> int:
    return DIAGONAL if core is not None and core.dim() == 1 else len(frames.a)
