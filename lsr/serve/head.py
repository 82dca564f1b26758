"""A module that adapters of a bank trained in full, such as a classification head, each with its number of labels."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from lsr.loading.base_models import by
from lsr.serve.stack import NOBODY, Rows, Stack, Stacked

OUTPUTS = "outputs of the head"  # a stack beside those of the tensors


class BankHead(Stacked):
    """Any module, with a stack for each tensor of its state dict, in which the tensor's first axis is the rows.

    Rows without an adapter have the base model's own state, as have adapters without such a copy. An adapter may have
    another number of labels than the base model: each row has as many outputs as the largest head, of which those after
    its own are -inf.
    """

    def __init__(self, base: nn.Module, labels: int, rows: Rows, places: int, precision: str) -> None:
        super().__init__(base, rows)
        self.like = {name: value.detach().to("meta") for name, value in base.state_dict().items()}
        self._is_exact = precision == "float32"  # otherwise the base model's state is not taken from the stacks
        self.labels, self.is_ragged = labels, False  # of the base model; whether another head has another number
        self.labelled = [
            name for name, like in self.like.items() if like.shape[:1] == (labels,)
        ]  # a row for each label
        for name, value in self.like.items():
            dtype = None if value.is_floating_point() else value.dtype
            self.add_stack(name, Stack((_as_rows(value).shape[1],), 1, precision, dtype))
        self.add_stack(OUTPUTS, Stack((1,), 1, precision, torch.int64))
        self.put(NOBODY, base.state_dict())
        for stack in self.stacks.values():
            stack.slots = stack.slots.repeat(places, 1)

    def labels_of(self, state: Mapping[str, Tensor]) -> int:
        """Return the number of labels of a state; 0 if its tensors do not tell.

        Raises:
            ValueError: if it differs from the base model's in anything but that; names the tensor.
        """
        count = next((len(state[name]) for name in self.labelled if state[name].dim()), 0)
        for name, like in self.like.items():
            needed = (count, *like.shape[1:]) if name in self.labelled else like.shape
            if state[name].shape != needed:
                raise ValueError(f"{name} of a head is {by(state[name].shape)}, needed: {by(needed)}")
        return count

    def put(self, place: int, state: Mapping[str, Tensor] | None) -> None:
        """Store the state of the adapter at a place, instead of what is there; None if it has the base model's."""
        if state is None:
            self.fill(place, {})
            return
        count = self.labels_of(state) or self.labels
        self.is_ragged |= count != self.labels
        rows = {name: _as_rows(value) for name, value in state.items()}
        self.fill(place, {**rows, OUTPUTS: torch.tensor([[count]])})

    def restore(self, tensors: Mapping[str, Tensor], places: int) -> None:
        """Take what `tensors` returned, but the state of the base model for rows without an adapter.

        Raises:
            ValueError: if something is missing or does not fit.
        """
        super().restore(tensors, places)
        for name, value in self.base.state_dict().items():
            counts = (self.stacks[name].slots > 0).sum(dim=1)
            if int(counts[NOBODY]) != len(_as_rows(value)):
                raise ValueError(
                    f"{name} of a head has {int(counts[NOBODY])} rows, but is {by(value.shape)} in the base model"
                )
            self.is_ragged |= bool((counts != counts[NOBODY]).any())
        self.put(NOBODY, self.base.state_dict())

    def outputs(self, place: int) -> int:
        """Return the number of outputs at a place."""
        return int(self.stacks[OUTPUTS].take(torch.tensor([place], device=self.stacks[OUTPUTS].slots.device)))

    def state(self, place: int) -> dict[str, Tensor]:
        """Return a copy of the state of the adapter at a place; nothing if it has that of the base model."""
        own = self.own(place)
        return {name: self._shaped(name, own[name], ()) for name in self.like if name in own}

    def _shaped(self, name: str, rows: Tensor, leading: Sequence[int]) -> Tensor:
        like = self.like[name]
        return rows.reshape(*leading, *([-1, *like.shape[1:]] if like.dim() else [])).to(like.dtype)

    def _taken(self, name: str, places: Tensor) -> Tensor:  # (rows, most, width)
        taken, of_places = self.stacks[name].take(places), self.stacks[OUTPUTS].slots[:, 0]
        if self._is_exact:
            return taken
        rows = _as_rows(self.base.state_dict()[name])
        borrowed = of_places.index_select(0, places) == of_places[NOBODY]
        return torch.where(borrowed[:, None, None], F.pad(rows, (0, 0, 0, taken.shape[1] - len(rows))), taken)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Apply to each row its own adapter's module, all rows in one batched call."""
        places = self.rows.of(x)
        if places is None:
            return self.base(x, *args, **kwargs)
        states = {name: self._shaped(name, self._taken(name, places), (len(x),)) for name in self.like}

        def one(state: dict[str, Tensor], row: Tensor) -> Tensor:
            return functional_call(self.base, state, (row[None], *args), kwargs)[0]

        found: Tensor = vmap(one, randomness="different")(states, x)
        if not self.is_ragged:
            return found
        own = self.stacks[OUTPUTS].take(places).view(-1, *[1] * (found.dim() - 1))
        return found.masked_fill(torch.arange(found.shape[-1], device=found.device) >= own, -torch.inf)


def _as_rows(value: Tensor) -> Tensor:
    return value.reshape(len(value), -1) if value.dim() else value.reshape(1, 1)
