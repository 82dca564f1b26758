"""A module of the base model with what adapters have for it, and what all such modules of a bank share."""

from collections.abc import Mapping
from threading import RLock

from torch import Tensor, nn

from lsr.serve.stack import NOBODY, Stack


class Shared:
    """How a bank stores adapters, and which of them the rows of a batch go through.

    All threads see the same rows, so one waits until another is done with its own.
    """

    def __init__(self, precision: str, labels: int) -> None:
        self.precision, self.labels = precision, labels  # labels of the base model
        self.ranks = {NOBODY: 0}  # by place: the most directions that its adapter has in a layer
        self.places: Tensor | None = None  # (rows,), while a batch passes through the bank
        self.rank = 0  # at least the largest of theirs: what a layer computes for each row
        self.one_thread = RLock()

    def places_of(self, x: Tensor) -> Tensor | None:  # (rows,)
        """Return the places of the rows of x.

        Raises:
            ValueError: if the number of rows does not match.
        """
        if self.places is not None and len(x) != len(self.places):
            raise ValueError(f"adapter_names must hold one name per row of the batch, {len(x)}, got {len(self.places)}")
        return self.places


class Stacked(nn.Module):
    """A module of the base model, and what adapters have for it: rows in stacks by name, at one place for each."""

    def __init__(self, base: nn.Module, shared: Shared) -> None:
        super().__init__()
        self.base, self.shared = base, shared
        self.stacks: dict[str, Stack] = {}

    def add_stack(self, name: str, *parts: int, precision: str | None = None) -> None:
        """Add a stack, on the device of the base module."""
        stack = Stack(parts, 1 + max(self.shared.ranks), precision or self.shared.precision)
        self.stacks[name] = stack.to(next(iter(self.base.state_dict().values())).device)
        self.add_module(f"stack_{len(self.stacks)}", stack)  # a tensor's name may have dots

    def fill(self, place: int, rows: Mapping[str, Tensor]) -> None:
        """Give a place these rows by stack, and none in the others."""
        for name, stack in self.stacks.items():
            stack.put(place, rows.get(name))

    def own(self, place: int) -> dict[str, Tensor]:  # (count, width) each
        """Return a copy of the rows of a place, by stack that has any."""
        return {name: rows for name, stack in self.stacks.items() if len(rows := stack.rows(place))}
