"""One adapter of one layer: its factors or those it shares, its core, what it started at, and what they make."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from lsr.algebra.shapes import Form
from lsr.init.initialization import Start
from lsr.tuner.config import CORED
from lsr.tuner.factors import LsrFactors, entries, moved, named
from lsr.tuner.functional import Side


@dataclass(frozen=True)
class Sizes:
    """Counts of parameters: `trained` ones, `stored` ones, and `effective` ones, which make the update.

    Shared factors count in the layer that stores them. Frames that come from elsewhere are not stored, and count as
    effective in the layer that keeps them.
    """

    trained: int
    stored: int
    effective: int


class LsrAdapter(LsrFactors):
    """The update ΔW = scaling * (B R A - B0 A0).

    R is `core`, a parameter that starts at zero, where `train` is `core` or `all`: (r, r), or (r,), its diagonal.
    Without one it is the identity.

    B0 A0 is what the adapter started at, where its initialization folds that: `start_A1`, ..., `start_B1`, ... are
    buffers in the shapes of the factors.

    The factors are its own, or those of `holder`, which another layer or the frames of a family own: then it has a core
    alone. Layers of one shape may also hold one and the same adapter.
    """

    core: nn.Parameter

    def __init__(
        self,
        form: Form,
        scaling: float,
        *,
        train: str = "factors",
        dropout: float = 0.0,
        storage: str = "float32",
        holder: LsrFactors | None = None,
    ) -> None:
        super().__init__(form, train, storage)
        self.scaling = scaling
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.has_start = False
        self._holder = () if holder is None else (holder,)  # a tuple, which nn.Module does not register

    @property
    def frames(self) -> LsrFactors:
        """Who holds the factors: the adapter itself, or what it shares with others."""
        return self._holder[0] if self._holder else self

    @property
    def has_core(self) -> bool:
        """Whether a core stands between A and B."""
        return self.trained_part in CORED

    def set_core(self, value: Tensor, like: Tensor) -> None:  # (r, r) or (r,)
        """Take a core: a new one on the device of `like`, a base weight, and in float32 at least."""
        existing = self._parameters.get("core")
        if existing is None:
            self.register_parameter("core", nn.Parameter(moved(value, like)))
        else:
            with torch.no_grad():
                existing.copy_(value)

    def subtract(self, start: Start, like: Tensor) -> None:
        """Keep a start as what to subtract."""
        for name, value in named(start):
            self.register_buffer(f"start_{name}", moved(value, like))
        self.has_start = True

    def forget_start(self) -> None:
        """Subtract nothing any more."""
        for name in [name for name in self._buffers if name.startswith("start_")]:
            delattr(self, name)
        self.has_start = False

    def make_room_for_start(self, like: Tensor) -> None:
        """Have buffers of zeros for what a file says is to subtract."""
        a, b = ([torch.zeros(factor.shape, device="cpu") for factor in side] for side in self.factors())
        self.subtract(Start(a, b), like)

    @property
    def is_meta(self) -> bool:
        """Whether parameters have no values yet: they are about to be loaded."""
        return next(self.parameters()).is_meta

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Have its parameters train or not, those that it shares with other layers too."""
        if self._holder:
            self.frames.requires_grad_(requires_grad)
        return super().requires_grad_(requires_grad)

    def factors(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the factors of A, (s, r_i, n_i) each, and of B, (s, m_i, r_i) each, frozen and shared ones too."""
        if not self._holder:
            return super().factors()
        a, b = ([factor.to(self.core.device) for factor in side] for side in self.frames.factors())
        return a, b

    def start_factors(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the factors of A0 and of B0, in the shapes of `factors`."""
        positions = range(1, len(self.form.rank_shape) + 1)
        a, b = ([getattr(self, f"start_{side}{position}") for position in positions] for side in "AB")
        return a, b

    def collapse(self) -> tuple[Tensor, Tensor]:  # (r, in_features), (out_features, r)
        """Return R A and B as matrices: what is added to the base layer as it is now, without the scaling."""
        a, b = self.matrices(*self.factors())
        if not self.has_core:
            return a, b
        precise = torch.promote_types(self.core.dtype, a.dtype)  # frames that are rounded come in float32
        core, a = self.core.to(precise), a.to(precise)
        return (core @ a if core.dim() == 2 else core[:, None] * a), b

    def operands(self) -> tuple[Side, Side]:
        """Return A1 and A2, B1 and B2 where these are all of the update; else the two of `collapse`, with None each."""
        if len(self.form.rank_shape) == 2 and not self.has_core:
            a, b = self.factors()
            return (a[0], a[1]), (b[0], b[1])
        full_a, full_b = self.collapse()
        return (full_a, None), (full_b, None)

    def as_lora(self) -> tuple[Tensor, Tensor]:  # (r or 2r, in_features), (out_features, r or 2r)
        """Return A and B such that scaling * B A is the whole update of the pretrained weight.

        Where a start is subtracted they are [A; A0] and [B, -B0], otherwise what `collapse` returns.
        """
        a, b = self.collapse()
        if not self.has_start:
            return a, b
        a0, b0 = self.matrices(*self.start_factors())
        return torch.cat([a, a0.to(a.dtype)]), torch.cat([b, -b0.to(b.dtype)], dim=1)

    def update(self) -> Tensor:  # (out_features, in_features)
        """Return the whole update of the pretrained weight, in float32 at least."""
        return self._product(*self.as_lora())

    def start_update(self) -> Tensor:  # (out_features, in_features)
        """Return scaling * B0 A0, in float32 at least."""
        return self._product(*self.matrices(*self.start_factors()))

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        precise = torch.promote_types(a.dtype, torch.float32)
        return self.scaling * (b.to(precise) @ a.to(precise))

    def sizes(self) -> Sizes:
        """Return how many parameters it trains, stores and works with; those that it shares count with their owner."""
        core = self.core.numel() if self.has_core else 0
        trained = sum(parameter.numel() for parameter in self.parameters())
        stored = sum(map(entries, self.state_dict().values()))
        return Sizes(trained, stored, core if self._holder else self.form.parameters + core)
