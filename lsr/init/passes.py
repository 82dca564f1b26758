"""Passes of a model over batches of examples that leave the model unchanged, and the optimizer of short trainings.

A batch is passed to `model(**batch)` as is, so it must be on the model's device.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

Batch = Mapping[str, Tensor]  # (examples, ...) each
# Called with what a pass iterates over and what the pass is for; yields the same items, for example to show progress.
Track = Callable[[Sequence[Any], str], Iterable[Any]]


def untracked(items: Sequence[Any], title: str) -> Iterable[Any]:
    """Return the items: shows no progress."""
    return items


def loss_of(model: nn.Module, batch: Batch) -> Tensor:  # ()
    """Return `model(**batch).loss`.

    Raises:
        ValueError: if the model returns no loss.
    """
    loss = getattr(model(**batch), "loss", None)
    if loss is None:
        raise ValueError(f"the model returned no loss: batches need labels, but these have {', '.join(batch)}")
    return loss


def size_of(batch: Batch) -> int:
    """Return the number of examples in a batch."""
    return len(next(iter(batch.values())))


def widths(layer: nn.Module) -> tuple[int, int]:
    """Return in_features and out_features of a layer; GPT-2's Conv1D stores its weight in that order, transposed."""
    if isinstance(layer, nn.Linear):  # not from the weight: packed 4-bit weights have other shapes
        return layer.in_features, layer.out_features
    n, m = cast("nn.Parameter", layer.weight).shape
    return n, m


@contextmanager
def undisturbed(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let only the given parameters accumulate gradients, starting from none and without dropout.

    Restores train/eval modes, which may differ between submodules, `requires_grad`, `grad` and torch's random states,
    on CPU and CUDA, afterwards.
    """
    chosen = list(parameters)
    modes = [(module, module.training) for module in model.modules()]
    states = [(parameter, parameter.requires_grad) for parameter in dict.fromkeys((*model.parameters(), *chosen))]
    gradients = [parameter.grad for parameter in chosen]
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(sorted(devices, key=str)):
        try:
            model.eval()
            for parameter, _ in states:
                parameter.requires_grad_(False)
            for parameter in chosen:
                parameter.requires_grad_(True).grad = None
            yield
        finally:
            for module, is_training in modes:
                module.training = is_training
            for parameter, is_trained in states:
                parameter.requires_grad_(is_trained)
            for parameter, gradient in zip(chosen, gradients, strict=True):
                parameter.grad = gradient


class Group(NamedTuple):
    """Parameters that share a learning rate."""

    parameters: Sequence[nn.Parameter]
    rate: float


class PreciseAdamW:
    """AdamW on copies of the parameters in at least float32, written back after each step.

    Half precision rounds most updates away.
    """

    def __init__(
        self, groups: Sequence[Group], *, weight_decay: float = 0.01, largest_norm: float | None = None
    ) -> None:
        self._parameters = [parameter for group in groups for parameter in group.parameters]
        self._exact = [
            parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)
            for parameter in self._parameters
        ]
        exact = iter(self._exact)
        self.optimizer = torch.optim.AdamW(
            [{"params": [next(exact) for _ in group.parameters], "lr": group.rate} for group in groups],
            weight_decay=weight_decay,
        )
        self._largest_norm = largest_norm

    def step(self, loss: Tensor) -> Sequence[Tensor | None]:  # each parameter's gradient
        """Take one step; the loss need not depend on all parameters."""
        gradients: Sequence[Tensor | None] = [None] * len(self._parameters)
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        for value, gradient in zip(self._exact, gradients, strict=True):
            value.grad = None if gradient is None else gradient.to(value.dtype)
        if self._largest_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._exact, self._largest_norm)
        self.optimizer.step()
        set_values(self._parameters, self._exact)
        return gradients


@contextmanager
def restored(parameters: Sequence[nn.Parameter], *, after_errors_only: bool = False) -> Iterator[None]:
    """Restore the values of the parameters afterwards."""
    values, has_failed = copied_values(parameters), True
    try:
        yield
        has_failed = False
    finally:
        if has_failed or not after_errors_only:
            set_values(parameters, values)


def copied_values(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return copies of the values of parameters, for `set_values`."""
    return [parameter.detach().clone() for parameter in parameters]


def set_values(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    """Copy values into parameters."""
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
