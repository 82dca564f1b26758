"""The adapter of a single layer: its own or shared factors, its core, and the resulting update."""

from typing import Self

import torch
from torch import Tensor, nn

from lsr.algebra.shapes import Form
from lsr.tuner.factors import LsrFactors
from lsr.tuner.functional import Side


class LsrAdapter(LsrFactors):
    """The update ΔW = scaling * B R A.

    With `train` set to `core` or `all`, R is the parameter `core`, initialized to zero: (r, r), or (r,) for a diagonal.
    Otherwise R is the identity.

    The adapter has its own factors, or only a core between `frames`, which belong to another layer's adapter or to an
    adapter in another folder. Layers of equal shape may also share a single adapter.
    """

    core: nn.Parameter

    def __init__(
        self,
        form: Form,
        scaling: float,
        *,
        train: str = "factors",
        dropout: float = 0.0,
        frames: LsrFactors | None = None,
    ) -> None:
        super().__init__(form, train)
        self.scaling = scaling
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self._frames = () if frames is None else (frames,)  # a tuple, which nn.Module does not register

    @property
    def frames(self) -> LsrFactors:
        """The module that holds the factors: the adapter itself, or the one that it shares."""
        return self._frames[0] if self._frames else self

    @property
    def has_core(self) -> bool:
        """Whether there is a core between A and B."""
        return self.trained_part != "factors"

    def set_core(self, value: Tensor, like: Tensor) -> None:  # (r, r) or (r,)
        """Set the core; a new one is on the device of the base weight `like`, in at least float32."""
        self._set_parameter("core", value, like)

    @property
    def is_meta(self) -> bool:
        """Whether parameters are on the meta device, about to be loaded."""
        return next(self.parameters()).is_meta

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Make the parameters trainable or frozen, including those shared with other layers."""
        if self._frames:
            self.frames.requires_grad_(requires_grad)
        return super().requires_grad_(requires_grad)

    def factors(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the factors of A, (s, r_i, n_i) each, and of B, (s, m_i, r_i) each, also frozen and shared ones."""
        if not self._frames:
            return super().factors()
        a, b = ([factor.to(self.core.device) for factor in side] for side in self.frames.factors())
        return a, b

    def collapse(self) -> tuple[Tensor, Tensor]:  # (r, in_features), (out_features, r)
        """Return the LoRA that is the same update: R A and B, without the scaling."""
        a, b = self.matrices(*self.factors())
        if not self.has_core:
            return a, b
        precise = torch.promote_types(self.core.dtype, a.dtype)  # frames of another adapter may be more precise
        core, a = self.core.to(precise), a.to(precise)
        return (core @ a if core.dim() == 2 else core[:, None] * a), b

    def operands(self) -> tuple[Side, Side]:
        """Return the factors of A and of B, or with a core the result of `collapse`; after one alone comes None."""
        a, b = ([side] for side in self.collapse()) if self.has_core else self.factors()
        return (a[0], a[1] if len(a) > 1 else None), (b[0], b[1] if len(b) > 1 else None)

    def update(self) -> Tensor:  # (out_features, in_features)
        """Return the update, in at least float32."""
        a, b = self.collapse()
        precise = torch.promote_types(a.dtype, torch.float32)
        return self.scaling * (b.to(precise) @ a.to(precise))
