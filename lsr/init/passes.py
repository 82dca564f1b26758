"""Passes of a model over batches of examples that leave the model unchanged.

A batch is passed to `model(**batch)` as is, so it must be on the model's device.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Batch = Mapping[str, Tensor]  # (examples, ...) each


def loss_of(model: nn.Module, batch: Batch) -> Tensor:  # ()
    """Return `model(**batch).loss`.

    Raises:
        ValueError: if the model returns no loss.
    """
    loss = getattr(model(**batch), "loss", None)
    if loss is None:
        raise ValueError(f"the model returned no loss: batches need labels, but these have {', '.join(batch)}")
    return loss


def part_of(
    progress: Callable[[int, int], None] | None,  # called with the numbers of batches done and in total
    start: int,
    total: int,
) -> Callable[[int], None] | None:
    """Return the progress callback of one of several passes, which counts from the `start` batches done before it."""
    return None if progress is None else lambda done: progress(start + done, total)


def size_of(batch: Batch) -> int:
    """Return the number of examples in a batch."""
    return len(next(iter(batch.values())))


@contextmanager
def undisturbed(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let only the given parameters accumulate gradients, starting from none and without dropout.

    Restores train/eval modes, `requires_grad`, `grad` and torch's random states, on CPU and CUDA, afterwards.
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
    """Put every module into evaluation mode, then restore each one's own: submodules may differ."""
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
