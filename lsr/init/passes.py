"""Passes of a model over batches of examples, which leave the model as it was.

A batch goes into `model(**batch)` as it is, so it must be on the model's device.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Batch = Mapping[str, Tensor]  # (examples, ...) each


def loss_of(model: nn.Module, batch: Batch) -> Tensor:  # ()
    """Return `model(**batch).loss`.

    Raises:
        ValueError: if there is none.
    """
    loss = getattr(model(**batch), "loss", None)
    if loss is None:
        raise ValueError(f"the model returned no loss: batches need labels, these have {', '.join(batch)}")
    return loss


def part_of(
    progress: Callable[[int, int], None] | None,  # told how many of how many batches are done
    start: int,
    total: int,
) -> Callable[[int], None] | None:
    """Return what one of several passes tells after each of its batches: those of the passes before are done."""
    return None if progress is None else lambda done: progress(start + done, total)


def size_of(batch: Batch) -> int:
    """Return how many examples a batch has."""
    return len(next(iter(batch.values())))


@contextmanager
def undisturbed(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let the given parameters alone take gradients, from none, without dropout.

    Afterwards modes, `requires_grad`, `grad` and the random numbers of torch, on CPU and CUDA, are what they were.
    """
    chosen = list(parameters)
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with (
        torch.random.fork_rng(sorted(devices, key=str)),
        _without_dropout(model),
        _only_these_require_grad(model, chosen),
        _without_gradients(chosen),
    ):
        yield


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and afterwards back into its own: they need not agree."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _only_these_require_grad(model: nn.Module, chosen: list[nn.Parameter]) -> Iterator[None]:
    flags = {parameter: parameter.requires_grad for parameter in (*model.parameters(), *chosen)}
    try:
        for parameter in flags:
            parameter.requires_grad_(False)
        for parameter in chosen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, required in flags.items():
            parameter.requires_grad_(required)


@contextmanager
def _without_gradients(chosen: list[nn.Parameter]) -> Iterator[None]:
    gradients = {parameter: parameter.grad for parameter in chosen}
    try:
        for parameter in chosen:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in gradients.items():
            parameter.grad = gradient
