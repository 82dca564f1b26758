"""The adapter of a single layer: its own or shared factors, its core, and the resulting update."""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

from lsr.algebra.separable import kron_sum
from lsr.algebra.shapes import Form
from lsr.init.initialization import Start
from lsr.tuner.config import LsrConfig
from lsr.tuner.functional import Side

ELSEWHERE = "elsewhere"  # in place of what is trained: the factors are those of another module


class LsrFactors(nn.Module):
    """`factor_A1` (s, r_1, n_1), ..., `factor_B1` (s, m_1, r_1), ...: parameters if they are trained, else buffers.

    They begin as zeros on the device of a base weight, in its dtype or float32, whichever is more precise. Buffers are
    frozen frames around a core. The factors know their shapes but not their layer, so layers of equal shape may share a
    single object.
    """

    def __init__(self, form: Form, like: Tensor, *, train: str = "core", persistent: bool = True) -> None:
        super().__init__()
        self.form = form
        for name, shape in form.factor_shapes.items() if train != ELSEWHERE else ():
            if train == "core":
                self.register_buffer(name, zeros(shape, like), persistent=persistent)
            else:
                self.register_parameter(name, nn.Parameter(zeros(shape, like)))

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the factors to stored ones by name."""
        check_factors(self.form, tensors)
        for name, value in tensors.items():
            getattr(self, name).copy_(value)

    @torch.no_grad()
    def set_factors(self, start: Start) -> None:
        """Set the factors to initial ones."""
        for name, value in zip(self.form.factor_shapes, (*start.a, *start.b), strict=True):
            getattr(self, name).copy_(value)

    def factors(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the factors of A, (s, r_i, n_i) each, and of B, (s, m_i, r_i) each, in at least float32."""
        count = len(self.form.rank_shape)
        a, b = ([getattr(self, f"factor_{side}{i}") for i in range(1, count + 1)] for side in "AB")
        return a, b

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Return the matrices A (r, in_features) and B (out_features, r), without padding."""
        a, b = (kron_sum(*side) for side in self.factors())
        return a[:, : self.form.in_features], b[: self.form.out_features]


class LsrAdapter(LsrFactors):
    """The update ΔW = scaling * B R A.

    With `train` set to `core` or `all`, R is the parameter `core`: (r, r), or (r,) for a diagonal. Otherwise R is the
    identity.

    The adapter has its own factors, or only a core between `frames`, which belong to another layer's adapter or to an
    adapter in another folder.
    """

    core: nn.Parameter

    def __init__(
        self, form: Form, config: LsrConfig, scaling: float, like: Tensor, frames: LsrFactors | None = None
    ) -> None:
        super().__init__(form, like, train=config.train if frames is None else ELSEWHERE)
        self.scaling = scaling
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.has_core = config.has_core
        self._frames = () if frames is None else (frames,)  # a tuple, which nn.Module does not register
        if self.has_core:
            shape = (form.rank, form.rank) if config.core == "full" else (form.rank,)
            self.core = nn.Parameter(zeros(shape, like))

    @property
    def frames(self) -> LsrFactors:
        """The module that holds the factors: the adapter itself, or the one that it shares."""
        return self._frames[0] if self._frames else self

    @property
    def drops(self) -> bool:
        """Whether inputs are dropped now."""
        return self.training and isinstance(self.dropout, nn.Dropout)

    @property
    def is_meta(self) -> bool:
        """Whether parameters are on the meta device, about to be loaded."""
        return next(self.parameters()).is_meta

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Make the parameters trainable or frozen, including those shared with other layers."""
        for frames in self._frames:
            frames.requires_grad_(requires_grad)
        return super().requires_grad_(requires_grad)

    def factors(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the factors of A, (s, r_i, n_i) each, and of B, (s, m_i, r_i) each, also frozen and shared ones."""
        if not self._frames:
            return super().factors()
        a, b = ([factor.to(self.core.device) for factor in side] for side in self.frames.factors())
        return a, b

    def collapse(self) -> tuple[Tensor, Tensor]:  # (r, in_features), (out_features, r)
        """Return the LoRA that is the same update: R A and B, without the scaling."""
        a, b = self.matrices()
        return (times_core(self.core, a) if self.has_core else a), b

    def operands(self) -> tuple[Side, Side]:
        """Return the factors of A and of B, or with a core the result of `collapse`; after one alone comes None."""
        a, b = ([side] for side in self.collapse()) if self.has_core else self.factors()
        return (a[0], a[1] if len(a) > 1 else None), (b[0], b[1] if len(b) > 1 else None)

    def update(self) -> Tensor:  # (out_features, in_features)
        """Return the update, in at least float32."""
        a, b = self.collapse()
        precise = torch.promote_types(a.dtype, torch.float32)
        return self.scaling * (b.to(precise) @ a.to(precise))


def times_core(
    core: Tensor,  # (r, r), or (r,) for a diagonal
    a: Tensor,  # (r, n)
) -> Tensor:  # (r, n)
    """Return R A in the more precise dtype of both: frames of another adapter may be more precise than a core."""
    precise = torch.promote_types(core.dtype, a.dtype)
    core, a = core.to(precise), a.to(precise)
    return core @ a if core.dim() == 2 else core[:, None] * a


def check_factors(form: Form, tensors: Mapping[str, Tensor]) -> None:
    """Check stored factors.

    Raises:
        ValueError: if one is missing or unexpected, or has the wrong shape; names it.
    """
    for name in sorted(form.factor_shapes.keys() ^ tensors.keys()):
        raise ValueError(f"{name} is {'missing' if name in form.factor_shapes else 'no part of these frames'}")
    for name, shape in form.factor_shapes.items():
        if tensors[name].shape != shape:
            raise ValueError(f"{name} is {tuple(tensors[name].shape)}, needed: {shape}")


def zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return zeros on the device of a base weight, in its dtype or float32, whichever is more precise."""
    return torch.zeros(shape, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
