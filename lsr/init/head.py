"""Gradients through a fitted head: through a randomly initialized one they say little about the task.

The fitted head serves the gradients only. Training starts from the original head: the fitted one did no better.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
from torch import nn

from lsr.algebra.spectrum import Matrix
from lsr.init.examples import DENSE_ENTRIES, SKETCH_RANK, weight_gradients
from lsr.init.features import Calls, backbone_of, features, given_back, tensors_in
from lsr.init.passes import Batch, loss_of, part_of, undisturbed
from lsr.init.steps import Group, PreciseAdamW, restored

STEPS = 60
RATE = 0.01
CACHE_BYTES = 2**31


def examples_gradients(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    head: Sequence[nn.Module] = (),
    *,
    steps: int = STEPS,
    rate: float = RATE,
    seed: int = 0,
    cache_bytes: int = CACHE_BYTES,
    dense_entries: int = DENSE_ENTRIES,
    rank: int = SKETCH_RANK,
    progress: Callable[[int, int], None] | None = None,  # called after each batch with the numbers done and total
) -> dict[str, Matrix]:  # (m, n) each
    """Return `weight_gradients` of the layers through a fitted head, which is restored afterwards; see `fitted_head`.

    The batches are read once and kept in memory. Takes a forward pass over `steps` of them, or all, to fit the head,
    if there is one, and a forward and backward pass over all for the gradients. Deterministic: equal inputs give equal
    bytes.

    Raises:
        ValueError: as `fitted_head` and `weight_gradients`.
    """
    listed = list(batches)
    start = passed_batches(listed, steps, head_parameters(model, head))
    total = start + len(listed)

    with fitted_head(
        model,
        head,
        listed,
        steps=steps,
        rate=rate,
        seed=seed,
        cache_bytes=cache_bytes,
        progress=part_of(progress, 0, total),
    ):
        return weight_gradients(
            model,
            layers,
            listed,
            dense_entries=dense_entries,
            rank=rank,
            seed=seed,
            progress=part_of(progress, start, total),
        )


@contextmanager
def fitted_head(
    model: nn.Module,
    head: Sequence[nn.Module],
    batches: Sequence[Batch],
    *,
    steps: int = STEPS,
    rate: float = RATE,
    seed: int = 0,
    cache_bytes: int = CACHE_BYTES,
    keep: bool = False,
    progress: Callable[[int], None] | None = None,  # called after each batch of the pass with the number done
) -> Iterator[None]:
    """Fit the parameters of a head by AdamW, one batch per step and without dropout; restore them, or `keep` them.

    `head` lists the modules that are trained in full alongside the adapter: in a PEFT wrapper, its `modules_to_save`
    wrappers, whose active copies are fitted. Leave it empty if the head is pretrained, as in a language model: nothing
    is then fitted. Parameters that the head shares with the backbone, such as tied embeddings, are left unchanged.

    One pass over the examples that the steps read, in an order drawn from `seed`, caches the backbone's outputs on its
    device, so that each step costs no more than the head. The pass ends when the cache exceeds `cache_bytes`; the head
    is then fitted to the examples cached so far, at least one batch.

    Raises:
        ValueError: if there are no examples; labels are missing, not finite or all equal; the model has no backbone or
            does not call it; its output or the loss is not finite; or the loss does not depend on the head.
    """
    parameters = head_parameters(model, head)
    if not (steps and parameters):
        yield
        return
    _check_labels(batches)
    with restored(parameters, after_errors_only=keep):
        with undisturbed(model, parameters):
            _fit(model, parameters, batches, steps, rate, seed, cache_bytes, progress)
        yield


def passed_batches(batches: Sequence[Batch], steps: int, parameters: Sequence[nn.Parameter]) -> int:
    """Return how many batches pass the model to fit a head with these parameters; 0 if none is fitted."""
    return min(steps, len(batches)) if parameters else 0


def head_parameters(model: nn.Module, head: Sequence[nn.Module]) -> list[nn.Parameter]:
    """Return the parameters of a head that it does not share with the backbone.

    Raises:
        ValueError: if `head` is not empty but the model has no backbone.
    """
    if not head:
        return []
    shared = set(backbone_of(model).parameters())
    found = dict.fromkeys(parameter for module in head for parameter in module.parameters())
    return [parameter for parameter in found if parameter not in shared]


def _fit(
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    batches: Sequence[Batch],
    steps: int,
    rate: float,
    seed: int,
    cache_bytes: int,
    progress: Callable[[int], None] | None,
) -> None:
    backbone, draws = backbone_of(model), torch.Generator().manual_seed(seed)
    order = torch.randperm(len(batches), generator=draws).tolist()
    planned = list(islice(_cycled(order, draws), steps))
    read = set(planned)  # fewer steps than batches do not read all of them
    kept = _kept_features(model, backbone, batches, [index for index in order if index in read], cache_bytes, progress)
    if len(kept) < len(read):
        planned = list(islice(_cycled(list(kept), draws), steps))
    optimizer = PreciseAdamW([Group(parameters, rate)])
    for step, index in enumerate(planned, 1):
        with given_back(backbone, kept[index]), torch.enable_grad():
            loss = loss_of(model, batches[index])
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss is not finite in step {step} of {steps} of the head at the learning rate {rate}"
            )
        if not any(optimizer.step(loss)):
            raise ValueError("the loss does not depend on the head: is this the head that the model calls?")


def _kept_features(
    model: nn.Module,
    backbone: nn.Module,
    batches: Sequence[Batch],
    order: Sequence[int],
    cache_bytes: int,
    progress: Callable[[int], None] | None,
) -> dict[int, Calls]:  # by batch index
    kept: dict[int, Calls] = {}
    used = 0
    for done, index in enumerate(order, 1):
        calls = features(model, backbone, batches[index])
        used += sum(value.nbytes for value in tensors_in(calls))
        if progress:
            progress(done)
        if kept and used > cache_bytes:
            break
        kept[index] = calls
    return kept


def _cycled(indices: Sequence[int], draws: torch.Generator) -> Iterator[int]:
    """Yield all the indices over and over, each time in a new order."""
    while True:
        yield from (indices[place] for place in torch.randperm(len(indices), generator=draws).tolist())


def _check_labels(batches: Sequence[Batch]) -> None:
    if not batches:
        raise ValueError("no examples: there are no batches to fit a head to")
    for number, batch in enumerate(batches, 1):
        if "labels" not in batch:
            raise ValueError(
                f"batch {number} has no labels to fit a head to: it has {', '.join(batch)}; with head_steps=0 no head "
                "is fitted"
            )
        if not batch["labels"].isfinite().all():
            raise ValueError(f"batch {number} has labels that are not finite")
    first = batches[0]["labels"][0]
    every = [batch["labels"] for batch in batches]
    if all(labels.shape[1:] == first.shape and (labels == first).all() for labels in every):
        raise ValueError(
            f"all {sum(map(len, every))} examples have the label {first.tolist()}: a head needs at least two"
        )
