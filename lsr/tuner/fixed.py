"""What of a layer's adapter does not train: frozen frames, the order of inputs and outputs, and a subtracted start."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

SMALL_SLOTS = 2**15  # below it a slot fits 16 bits in the adapter's file


class FixedPart(nn.Module):
    """Buffers of one adapter in one layer. Those of the state dict are stored; the others are made again when loading.

    `frame_A2`, `frame_B2`, ...: factors that are frozen. `in_slots` (n,), `out_slots` (m,): which column of A belongs
    to which input, which row of B to which output. `start_A1`, ..., `start_B1`, ...: the factors to subtract.
    """

    in_slots: Tensor | None
    out_slots: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("in_slots", None)
        self.register_buffer("out_slots", None)
        self.has_start = False

    def set_slots(self, name: str, slots: Tensor, width: int) -> None:
        """Keep the slots of one side, of 0 ... width - 1."""
        self.register_buffer(name, slots.to(torch.int16 if width <= SMALL_SLOTS else torch.int32))

    def set_frame(self, side: str, factors: Sequence[Tensor], *, stored: bool) -> None:
        """Freeze factors 2, 3, ... of a side, (s, r_i, n_i) or (s, m_i, r_i) each."""
        for position, factor in enumerate(factors, start=2):
            self.register_buffer(f"frame_{side}{position}", factor.detach(), persistent=stored)

    def set_start(self, side: str, factors: Sequence[Tensor]) -> None:
        """Keep all factors of a side as what to subtract."""
        self.has_start = True
        for position, factor in enumerate(factors, start=1):
            self.register_buffer(f"start_{side}{position}", factor.detach(), persistent=False)

    def frame(self, side: str, position: int) -> Tensor | None:
        """Return a frozen factor, or None if it trains."""
        return self._buffers.get(f"frame_{side}{position}")

    def start(self, side: str, count: int) -> list[Tensor]:
        """Return all factors of a side that are subtracted."""
        return [getattr(self, f"start_{side}{position}") for position in range(1, count + 1)]

    def stored_numbers(self) -> int:
        """Return how many numbers of this part are in the adapter's file."""
        return sum(value.numel() for value in self.state_dict().values())
