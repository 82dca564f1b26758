"""One adapter of one layer: its factors, which of them are frozen, what it started at, and the matrices they make."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lsr.algebra.separable import kron_sum
from lsr.algebra.shapes import Form
from lsr.init.initialization import Start
from lsr.tuner.functional import Side


@dataclass(frozen=True)
class Sizes:
    """Counts of parameters: `trained` ones, `stored` ones, and `effective` ones, which make the update B A."""

    trained: int
    stored: int
    effective: int


class LsrAdapter(nn.Module):
    """The update ΔW = scaling * (B A - B0 A0), with B0 A0 what it started at, where its initialization folds that.

    `factor_A1` (s, r_1, n_1), ..., `factor_B1` (s, m_1, r_1), ... are parameters; with `train="first"` all but A1 and
    B1 are buffers. `start_A1`, ..., `start_B1`, ... are buffers of the same shapes. All of them are stored.

    It knows its shapes but no layer, so layers of one shape may hold one and the same adapter.
    """

    def __init__(self, form: Form, scaling: float, *, train: str = "factors", dropout: float = 0.0) -> None:
        super().__init__()
        self.form = form
        self.scaling = scaling
        self.trained_part = train
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.has_start = False

    def set_factors(self, start: Start, like: Tensor) -> None:
        """Take the factors of a start: new ones on the device of `like`, a base weight, and in float32 at least."""
        for name, value in _named(start):
            existing = self._parameters.get(f"factor_{name}", self._buffers.get(f"factor_{name}"))
            if existing is not None:
                with torch.no_grad():
                    existing.copy_(value)
            elif self.trained_part == "first" and not name.endswith("1"):
                self.register_buffer(f"factor_{name}", _moved(value, like))
            else:
                self.register_parameter(f"factor_{name}", nn.Parameter(_moved(value, like)))

    def subtract(self, start: Start, like: Tensor) -> None:
        """Keep a start as what to subtract."""
        for name, value in _named(start):
            self.register_buffer(f"start_{name}", _moved(value, like))
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
        """Whether its factors have no values yet: they are about to be loaded."""
        return self.factors()[0][0].is_meta

    def factors(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the factors of A, (s, r_i, n_i) each, and those of B, (s, m_i, r_i) each, frozen ones too."""
        return self._both_sides("factor")

    def start_factors(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the factors of A0 and of B0, in the shapes of `factors`."""
        return self._both_sides("start")

    def _both_sides(self, kind: str) -> tuple[list[Tensor], list[Tensor]]:
        positions = range(1, len(self.form.rank_shape) + 1)
        a, b = ([getattr(self, f"{kind}_{side}{position}") for position in positions] for side in "AB")
        return a, b

    def collapse(self) -> tuple[Tensor, Tensor]:  # (r, in_features), (out_features, r)
        """Return A and B as matrices: what is added to the base layer as it is now, without the scaling."""
        return self._matrices(*self.factors())

    def operands(self) -> tuple[Side, Side]:
        """Return A1 and A2, B1 and B2 where these are all of A and B; else the two of `collapse`, with None each."""
        a, b = self.factors()
        if len(a) == 2:
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
        a0, b0 = self._matrices(*self.start_factors())
        return torch.cat([a, a0.to(a.dtype)]), torch.cat([b, -b0.to(b.dtype)], dim=1)

    def update(self) -> Tensor:  # (out_features, in_features)
        """Return the whole update of the pretrained weight, in float32 at least."""
        return self._product(*self.as_lora())

    def start_update(self) -> Tensor:  # (out_features, in_features)
        """Return scaling * B0 A0, in float32 at least."""
        return self._product(*self._matrices(*self.start_factors()))

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        precise = torch.promote_types(a.dtype, torch.float32)
        return self.scaling * (b.to(precise) @ a.to(precise))

    def _matrices(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return kron_sum(*a)[:, : self.form.in_features], kron_sum(*b)[: self.form.out_features]

    def sizes(self) -> Sizes:
        """Return how many parameters it trains, stores and works with."""
        trained = self.form.first_parameters if self.trained_part == "first" else self.form.parameters
        return Sizes(trained, self.form.parameters * (2 if self.has_start else 1), self.form.parameters)


def _named(start: Start) -> Iterator[tuple[str, Tensor]]:
    for side, factors in (("A", start.a), ("B", start.b)):
        for position, factor in enumerate(factors, start=1):
            yield f"{side}{position}", factor


def _moved(value: Tensor, like: Tensor) -> Tensor:
    return value.detach().to(like.device, torch.promote_types(like.dtype, torch.float32), copy=True)
