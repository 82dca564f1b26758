"""AdamW in at least float32, whatever the dtype of the parameters: half precision rounds most updates away."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Group(NamedTuple):
    """Parameters that share a learning rate."""

    parameters: Sequence[nn.Parameter]
    rate: float


class PreciseAdamW:
    """AdamW on high-precision copies of the parameters, written back to them after each step."""

    def __init__(
        self, groups: Sequence[Group], *, weight_decay: float = 0.01, largest_norm: float | None = None
    ) -> None:
        self._parameters = [parameter for group in groups for parameter in group.parameters]
        self._exact = [parameter.detach().to(_precise(parameter.dtype), copy=True) for parameter in self._parameters]
        exact = iter(self._exact)
        self.optimizer = torch.optim.AdamW(
            [{"params": [next(exact) for _ in group.parameters], "lr": group.rate} for group in groups],
            weight_decay=weight_decay,
        )
        self._largest_norm = largest_norm

    def step(self, loss: Tensor) -> list[bool]:  # for each parameter, whether the loss depends on it
        """Take one step; the loss need not depend on all parameters."""
        found = torch.autograd.grad(loss, self._parameters, allow_unused=True) if loss.requires_grad else ()
        gradients = found or [None] * len(self._parameters)
        for value, gradient in zip(self._exact, gradients, strict=True):
            value.grad = None if gradient is None else gradient.to(value.dtype)
        if self._largest_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._exact, self._largest_norm)
        self.optimizer.step()
        set_values(self._parameters, self._exact)
        return [gradient is not None for gradient in gradients]


@contextmanager
def restored(parameters: Sequence[nn.Parameter], *, after_errors_only: bool = False) -> Iterator[None]:
    """Restore the values of the parameters afterwards."""
    values, failed = copied_values(parameters), True
    try:
        yield
        failed = False
    finally:
        if failed or not after_errors_only:
            set_values(parameters, values)


def copied_values(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return copies of the values of parameters, for `set_values`."""
    return [parameter.detach().clone() for parameter in parameters]


def set_values(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    """Copy values into parameters."""
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
