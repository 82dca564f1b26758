"""Gradients through a head that has been fitted: through a fresh one they say little about the task.

Only gradients are taken through it. Training starts from the head as it was: the fitted one did no better there.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

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
    progress: Callable[[int, int], None] | None = None,  # told after each batch of a pass how many of how many are done
) -> dict[str, Matrix]:  # (m, n) each
    """Return `weight_gradients` of the layers through a fitted head, which is then as it was; see `fitted_head`.

    The batches are read once and kept. Two passes over them, one of which goes backward; without a head to fit, that
    one alone. What is given alike comes back with the same bytes.

    Raises:
        ValueError: as `fitted_head` and `weight_gradients`.
    """
    listed = list(batches)
    fits = bool(steps and head_parameters(model, head))
    start, total = (len(listed), 2 * len(listed)) if fits else (0, len(listed))

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
    progress: Callable[[int], None] | None = None,  # told after each batch of the pass how many are done
) -> Iterator[None]:
    """Fit the parameters of a head by AdamW steps on a batch each, without dropout; afterwards put them back.

    `head` is the modules that are trained whole beside the adapters: for a model in a PEFT wrapper, its wrappers of
    `modules_to_save`, each of which has a copy in use. Give none where the head is pretrained, as a language model's:
    nothing is fitted then. What the head shares with the backbone, such as tied embeddings, stays.

    One pass over the examples, in an order drawn by `seed`, keeps what the backbone returns on its device; the steps
    cost no more than the head itself. When that exceeds `cache_bytes` the pass ends, and the head is fitted to the
    examples until there: those of one batch at least.

    Raises:
        ValueError: if there are no examples; labels are missing, not finite or all the same; the model has no backbone,
            or does not call it; its output or the loss is not finite; the loss does not depend on the head.
    """
    parameters = head_parameters(model, head)
    if not (steps and parameters):
        yield
        return
    _check_labels(batches)
    with restored(parameters):
        with undisturbed(model, parameters):
            _fit(model, parameters, batches, steps, rate, seed, cache_bytes, progress)
        yield


def head_parameters(model: nn.Module, head: Sequence[nn.Module]) -> list[nn.Parameter]:
    """Return the parameters of a head that its backbone does not share.

    Raises:
        ValueError: if there are modules of a head, but the model has no backbone.
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
    kept = _kept_features(model, backbone, batches, order, cache_bytes, progress)
    optimizer = PreciseAdamW([Group(parameters, rate)])
    for step, index in zip(range(1, steps + 1), _cycled(list(kept), draws), strict=False):
        with given_back(backbone, kept[index]), torch.enable_grad():
            loss = loss_of(model, batches[index])
        if not torch.isfinite(loss):
            raise ValueError(f"the loss of the head is not finite in step {step} of {steps} at the rate {rate}")
        if not any(optimizer.step(loss)):
            raise ValueError("the loss does not depend on the head: is it what the model calls?")


def _kept_features(
    model: nn.Module,
    backbone: nn.Module,
    batches: Sequence[Batch],
    order: Sequence[int],
    cache_bytes: int,
    progress: Callable[[int], None] | None,
) -> dict[int, Calls]:  # by the index of a batch
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
    """Return all of the indices again and again, each time in another order."""
    while True:
        yield from (indices[place] for place in torch.randperm(len(indices), generator=draws).tolist())


def _check_labels(batches: Sequence[Batch]) -> None:
    if not batches:
        raise ValueError("no examples: there is no batch to fit a head to")
    for number, batch in enumerate(batches, 1):
        if "labels" not in batch:
            raise ValueError(f"batch {number} has no labels to fit a head to: it has {', '.join(batch)}")
        if not batch["labels"].isfinite().all():
            raise ValueError(f"batch {number} has labels that are not finite")
    first = batches[0]["labels"][0]
    every = [batch["labels"] for batch in batches]
    if all(labels.shape[1:] == first.shape and (labels == first).all() for labels in every):
        raise ValueError(f"all {sum(map(len, every))} examples have the label {first.tolist()}: a head needs two")
