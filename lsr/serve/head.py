"""A module that adapters of a bank trained in full, such as a classification head, each with its number of labels."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from lsr.loading.contents import by_label
from lsr.serve.stack import ZERO, Shared, Stacked


class Answer(NamedTuple):
    """The result of a row: as many logits as its adapter has labels; a number if `labels` is None."""

    adapter: str
    labels: tuple[str, ...] | None
    logits: Tensor  # (labels,), or (1,)
    thresholds: tuple[float, ...] | None = None  # of probabilities, if any number of the labels may apply

    @property
    def probabilities(self) -> dict[str, float]:
        """The probability of each label, all of which add up to 1 unless several may apply; none of a number."""
        logits = self.logits.double()
        shares = logits.softmax(dim=0) if self.thresholds is None else logits.sigmoid()
        return dict(zip(self.labels or (), shares.tolist(), strict=False))

    @property
    def applying(self) -> list[str]:
        """The labels whose probabilities reach their thresholds, if several may apply."""
        reached = zip(self.probabilities.items(), self.thresholds or (), strict=False)
        return [label for (label, share), threshold in reached if share >= threshold]


class BankHead(Stacked):
    """Any module, with a stack for each tensor of its state dict, in which the tensor's first axis is the rows.

    Rows of a batch whose adapter has no such state, or that have no adapter, have the base model's output. An adapter
    may have another number of labels than the base model: each row has as many outputs as the largest head, of which
    those after its own are -inf.
    """

    def __init__(self, base: nn.Module, shared: Shared) -> None:
        super().__init__(base, shared)
        self.like = {name: value.detach().to("meta") for name, value in base.state_dict().items()}
        self.labelled = by_label(self.like, shared.labels)
        for name, value in self.like.items():
            self.add_stack(name, _as_rows(value).shape[1])

    def put(self, place: int, state: Mapping[str, Tensor] | None) -> None:
        """Store the state of the adapter at a place, instead of what is there; None if it has the base model's."""
        self.fill(place, {name: _as_rows(value) for name, value in (state or {}).items()})
        for stack in self.stacks.values():  # whose width is what each row of a batch takes
            stack.trim()

    def state(self, place: int) -> dict[str, Tensor]:
        """Return a copy of the state of the adapter at a place; nothing if it has that of the base model."""
        rows = {name: stack.rows(place) for name, stack in self.stacks.items()}
        return {name: self._shaped(name, own) for name, own in rows.items() if len(own)}

    def _shaped(self, name: str, rows: Tensor) -> Tensor:  # (..., most, width)
        like = self.like[name]
        return rows.reshape(*rows.shape[:-2], *([-1, *like.shape[1:]] if like.dim() else [])).to(like.dtype)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Apply to each row its own adapter's module, all rows in one batched call."""
        of_base, places = self.base(x, *args, **kwargs), self.shared.places
        if places is None:
            return of_base
        own = {name: max(1, self.shared.outputs) if name in self.labelled else None for name in self.stacks}
        states = {name: self._shaped(name, stack.take(places, own[name])) for name, stack in self.stacks.items()}

        def one(state: dict[str, Tensor], row: Tensor) -> Tensor:
            return functional_call(self.base, state, (row[None], *args), kwargs)[0]

        found: Tensor = vmap(one, randomness="different")(states, x)
        slots = self.stacks[(self.labelled or list(self.like))[0]].slots
        counts = (slots.index_select(0, places) > ZERO).sum(dim=1)  # of labels, each a row of its stack
        counts = counts.view(-1, *[1] * (found.dim() - 1))
        if self.labelled:
            most = max(slots.shape[1], self.shared.labels)
            found, of_base = (F.pad(one, (0, most - one.shape[-1]), value=-torch.inf) for one in (found, of_base))
            found = found.masked_fill(torch.arange(most, device=found.device) >= counts, -torch.inf)
        return torch.where(counts > 0, found, of_base)


def _as_rows(value: Tensor) -> Tensor:
    return value.reshape(len(value), -1) if value.dim() else value.reshape(1, 1)
