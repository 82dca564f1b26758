"""A module that each adapter of a bank trained in full, such as a classification head, with stacked parameters."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lsr.serve.rows import NOBODY, Rows, grown

STACK = "stack_"


class BankHead(nn.Module):
    """Any module, with the state of each adapter's copy: `stack_0` (places, ...), ... in the order of its state dict.

    The slot for rows without an adapter holds the base model's own state, as do those of adapters without such a copy.
    """

    def __init__(self, base_module: nn.Module, rows: Rows, places: int) -> None:
        super().__init__()
        self.base_module = base_module
        self._rows = (rows,)
        self.state_names = list(base_module.state_dict())
        for position, value in enumerate(base_module.state_dict().values()):
            self.register_buffer(f"{STACK}{position}", value.detach().expand(places, *value.shape).clone())

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Apply to each row its own adapter's module, all rows in one batched call."""
        places = self._rows[0].of(x)
        if places is None:
            return self.base_module(x, *args, **kwargs)
        states = {name: stack.index_select(0, places) for name, stack in self.by_name().items()}

        def one(state: dict[str, Tensor], row: Tensor) -> Tensor:
            return functional_call(self.base_module, state, (row[None], *args), kwargs)[0]

        return vmap(one, randomness="different")(states, x)

    def by_name(self) -> dict[str, Tensor]:
        """Return the stacks by their names in the module's state dict."""
        return {name: getattr(self, f"{STACK}{position}") for position, name in enumerate(self.state_names)}

    def put(self, place: int, state: Mapping[str, Tensor]) -> None:
        """Put the state of an adapter's module into its slot."""
        with torch.no_grad():
            for position, name in enumerate(self.state_names):
                stack = grown(getattr(self, f"{STACK}{position}"), (place + 1, *state[name].shape))
                setattr(self, f"{STACK}{position}", stack)
                stack[place].copy_(state[name])

    def take_stacks(self, stacks: Mapping[str, Tensor]) -> None:
        """Take over whole stacks, by state-dict name; the first slot is reset to the base model's own state."""
        own = self.base_module.state_dict()
        for position, name in enumerate(self.state_names):
            setattr(self, f"{STACK}{position}", stacks[name].to(own[name]))
        self.put(NOBODY, own)

    def stacked(self) -> list[Tensor]:
        """Return the stacks."""
        return list(self.by_name().values())

    def make_room(self, places: int) -> None:
        """Grow the stacks to at least `places` slots."""
        for position in range(len(self.state_names)):
            stack: Tensor = getattr(self, f"{STACK}{position}")
            setattr(self, f"{STACK}{position}", grown(stack, (places, *stack.shape[1:])))
