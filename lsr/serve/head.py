"""A module that each adapter of a bank trained in full, such as a classification head, with stacked parameters."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call, vmap

from lsr.loading.base_models import by
from lsr.serve.slots import NOBODY, Rows, Stacked


class BankHead(Stacked):
    """Any module, with a stack for each tensor of its state dict: the states of the adapters' copies.

    The slot for rows without an adapter holds the base model's own state, as do those of adapters without such a copy.
    """

    def __init__(self, base_module: nn.Module, rows: Rows, stacks: Mapping[str, Tensor]) -> None:
        for name, value in base_module.state_dict().items():
            if name not in stacks or stacks[name].shape[1:] != value.shape:
                has = by(stacks[name].shape[1:]) if name in stacks else "missing"
                raise ValueError(f"{name} of a head is {has}, but {by(value.shape)} in the base model")
        super().__init__(rows, {name: stacks[name].to(value) for name, value in base_module.state_dict().items()})
        self.base_module = base_module
        self.put(NOBODY, base_module.state_dict())

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Apply to each row its own adapter's module, all rows in one batched call."""
        places = self.rows.of(x)
        if places is None:
            return self.base_module(x, *args, **kwargs)
        states = {name: stack.index_select(0, places) for name, stack in self.stacks().items()}

        def one(state: dict[str, Tensor], row: Tensor) -> Tensor:
            return functional_call(self.base_module, state, (row[None], *args), kwargs)[0]

        return vmap(one, randomness="different")(states, x)


def new_head(base_module: nn.Module, rows: Rows, places: int) -> BankHead:
    """Return a head whose slots all hold the base model's own state."""
    state = base_module.state_dict()
    return BankHead(base_module, rows, {n: v.detach().expand(places, *v.shape).clone() for n, v in state.items()})
