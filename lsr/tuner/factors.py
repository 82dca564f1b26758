"""The factors of A and B, of a single adapter or shared by several."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from lsr.algebra.separable import kron_sum
from lsr.algebra.shapes import Form
from lsr.init.initialization import Start


class LsrFactors(nn.Module):
    """`factor_A1` (s, r_1, n_1), ..., `factor_B1` (s, m_1, r_1), ...: parameters if they are trained, else buffers.

    Buffers are frozen frames around a core. The factors know their shapes but not their layer, so layers of equal shape
    may share a single object.
    """

    def __init__(self, form: Form, train: str = "factors", *, persistent: bool = True) -> None:
        super().__init__()
        self.form = form
        self.trained_part = train  # factors, core or all
        self.is_persistent = persistent  # whether a state dict holds buffers

    def set_factors(self, start: Start, like: Tensor) -> None:
        """Set the initial factors; new ones are on the device of the base weight `like`, in at least float32."""
        for name, value in named(start):
            if self.trained_part == "core":
                self._set_frame(f"factor_{name}", moved(value, like))
            else:
                self._set_parameter(f"factor_{name}", value, like)

    def _set_parameter(self, name: str, value: Tensor, like: Tensor) -> None:
        existing = self._parameters.get(name)
        if existing is None:
            self.register_parameter(name, nn.Parameter(moved(value, like)))
        else:
            with torch.no_grad():
                existing.copy_(value)

    def _set_frame(self, name: str, value: Tensor) -> None:
        existing = self._buffers.get(name)
        if existing is None:
            self.register_buffer(name, value, persistent=self.is_persistent)
        else:
            existing.copy_(value)

    def load(self, tensors: Mapping[str, Tensor], like: Tensor) -> None:
        """Load stored frames, `factor_A1` and so on, to the device of a base weight, in at least float32.

        Raises:
            ValueError: if a tensor is missing or unexpected, or has the wrong shape; names it.
        """
        a, b = (
            [torch.zeros(self.form.separation_rank, *sizes) for sizes in side]
            for side in (
                zip(self.form.rank_shape, self.form.in_shape, strict=True),
                zip(self.form.out_shape, self.form.rank_shape, strict=True),
            )
        )
        self.set_factors(Start(a, b), torch.empty(0))
        for name in sorted(self._buffers.keys() ^ tensors.keys()):
            raise ValueError(f"{name} is {'missing' if name in self._buffers else 'no part of these frames'}")
        for name, room in list(self._buffers.items()):
            value = tensors[name]
            if room is not None and room.shape != value.shape:
                raise ValueError(f"{name} is {tuple(value.shape)}, needed: {tuple(room.shape)}")
            self._buffers[name] = moved(value, like)

    def factors(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the factors of A, (s, r_i, n_i) each, and of B, (s, m_i, r_i) each, in at least float32."""
        count = len(self.form.rank_shape)
        a, b = ([getattr(self, f"factor_{side}{i}") for i in range(1, count + 1)] for side in "AB")
        return a, b

    def matrices(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the matrices A (r, in_features) and B (out_features, r) of factors, without padding."""
        return kron_sum(*a)[:, : self.form.in_features], kron_sum(*b)[: self.form.out_features]


def named(start: Start) -> Iterator[tuple[str, Tensor]]:
    """Yield the initial factors with their names: A1, A2, ..., B1, B2, ..."""
    for side, factors in (("A", start.a), ("B", start.b)):
        for position, factor in enumerate(factors, start=1):
            yield f"{side}{position}", factor


def moved(value: Tensor, like: Tensor) -> Tensor:
    """Return a copy on the device of a base weight, in its dtype or float32, whichever is more precise."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return value.detach().to(like.device, dtype, copy=True).contiguous()  # safetensors takes nothing else
