"""A head fitted to examples: gradients through a randomly initialized one say little about the task."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
from torch import nn

from lsr.init.passes import Batch, Track, copied_values, descend, set_values, undisturbed, untracked

STEPS = 60
RATES = (0.01, 0.001, 0.0001)  # each follows if the head is dead after the one before


@contextmanager
def fitted_head(
    model: nn.Module,
    head: Sequence[nn.Module],
    batches: Sequence[Batch],
    *,
    steps: int = STEPS,
    seed: int = 0,
    keep: bool = False,
    track: Track = untracked,
) -> Iterator[None]:
    """Fit the parameters of a head by AdamW, one batch per step and without dropout; restore them, or `keep` them.

    `head` lists the modules that are trained in full alongside the adapter: in a PEFT wrapper, its `modules_to_save`
    wrappers, whose active copies are fitted. Leave it empty if the head is pretrained, as in a language model: nothing
    is then fitted. Parameters that other modules use too, such as tied embeddings, are left unchanged. The batches are
    read over and over, each time in a new order drawn from `seed`. A fit after which no gradient gets through the head
    (features that say little have driven its ReLUs to zero) is repeated from the beginning with smaller steps.

    Raises:
        ValueError: if there are no examples; labels are missing or all equal; the loss is not finite or does not depend
            on the head.
    """
    if not batches:
        raise ValueError("no examples: there are no batches")
    parameters = head_parameters(model, head)
    begin, is_kept = copied_values(parameters), False
    try:
        if steps and parameters:
            _check_labels(batches)
            planned = [batches[index] for index in islice(_rounds(len(batches), seed), steps)]
            with undisturbed(model, parameters):
                for rate in RATES:
                    set_values(parameters, begin)
                    if not _is_dead_after(rate, model, parameters, planned, track):
                        break
        yield
        is_kept = keep
    finally:
        if not is_kept:
            set_values(parameters, begin)


def _is_dead_after(
    rate: float, model: nn.Module, parameters: Sequence[nn.Parameter], batches: Sequence[Batch], track: Track
) -> bool:
    # Take one step per batch. If none of the last gradients is left, the head has learned the batch by heart; if only
    # some are, they end within the head.
    reached: list[bool] = []
    for _, gradients in descend(model, [(parameters, rate)], batches, "fit the head", track):
        reached = [bool(gradient.any()) for gradient in gradients if gradient is not None]
        if not reached:
            raise ValueError("the loss does not depend on the head: is this the head that the model calls?")
    return any(reached) and not all(reached)


def head_parameters(model: nn.Module, head: Sequence[nn.Module]) -> list[nn.Parameter]:
    """Return the parameters of a head that no other module uses."""
    inside = {module for part in head for module in part.modules()}
    others = (module for module in model.modules() if module not in inside)
    shared = {parameter for module in others for parameter in module.parameters(recurse=False)}
    own = dict.fromkeys(parameter for part in head for parameter in part.parameters())
    return [parameter for parameter in own if parameter not in shared]


def _rounds(count: int, seed: int) -> Iterator[int]:
    """Yield the indices below `count` over and over, each time in a new order."""
    draws = torch.Generator().manual_seed(seed)
    first = torch.randperm(count, generator=draws)  # drawn once for all rounds: each is an order of this order
    while True:
        yield from first[torch.randperm(count, generator=draws)].tolist()


def _check_labels(batches: Sequence[Batch]) -> None:
    every = [batch["labels"] for batch in batches if "labels" in batch]  # without them, the model returns no loss
    first = every[0][0] if every else None
    if first is not None and all(labels.shape[1:] == first.shape and (labels == first).all() for labels in every):
        raise ValueError(
            f"all {sum(map(len, every))} examples have the label {first.tolist()}: a head needs at least two"
        )
