"""Forward and backward passes that leave a model unchanged, and short training of some of its parameters.

A head is fitted to the examples first, because gradients through a randomly initialized head carry little information
about the task. A batch is passed to `model(**batch)` unchanged, so it must be on the model's device.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

STEPS = 60  # default number of steps to fit a head
RATES = (0.01, 0.001, 0.0001)  # each follows if the head is dead after the one before

Batch = Mapping[str, Tensor]  # (examples, ...) each
Group = tuple[Sequence[nn.Parameter], float]  # parameters, and their learning rate
# Called with what a pass iterates over and what the pass is for; yields the same items, for example to show progress.
Track = Callable[[Sequence[Any], str], Iterable[Any]]


def hide_progress(items: Sequence[Any], title: str) -> Iterable[Any]:
    """Return the items: the default for callers that show no progress."""
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


def widths(layer: nn.Module) -> tuple[int, int]:
    """Return in_features and out_features of a layer; GPT-2's Conv1D stores its weight in that order, transposed."""
    if isinstance(layer, nn.Linear):  # its weight, if packed in 4 bits, has another shape
        return layer.in_features, layer.out_features
    n, m = cast("nn.Parameter", layer.weight).shape
    return n, m


@contextmanager
def preserve_state(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let only the given parameters accumulate gradients, starting from none and without dropout.

    Restores train/eval modes, which may differ between submodules, `requires_grad`, `grad` and torch's random states,
    on CPU and CUDA, afterwards.
    """
    chosen = list(parameters)
    modes = [(module, module.training) for module in model.modules()]
    every = dict.fromkeys((*model.parameters(), *chosen))
    states = [(parameter, parameter.requires_grad) for parameter in every]
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


def run_adamw(
    model: nn.Module,
    groups: Sequence[Group],
    batches: Sequence[Batch],
    title: str,
    track: Track,
    *,
    share: Callable[[int], float] = lambda done: 1.0,
    weight_decay: float = 0.01,
    largest_norm: float | None = None,
) -> Iterator[tuple[float, Sequence[Tensor | None]]]:
    """Take a step of AdamW per batch; yield its loss, and each parameter's gradient if the loss depends on it.

    AdamW works on copies in at least float32, written back after each step: half precision rounds most updates away.
    `share` returns the factor of the learning rates in a step, given the number of steps before it.

    Raises:
        ValueError: if a loss is not finite; names the run and the step.
    """
    exact = {}
    options = []
    for parameters, rate in groups:
        for parameter in parameters:
            precise = torch.promote_types(parameter.dtype, torch.float32)
            exact[parameter] = parameter.detach().to(precise, copy=True)
        options.append({"params": [exact[parameter] for parameter in parameters], "lr": rate})
    optimizer = torch.optim.AdamW(options, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    for step, batch in enumerate(track(batches, title), 1):
        with torch.enable_grad():
            loss = loss_of(model, batch)
        if not torch.isfinite(loss):
            where = f"in step {step} of {len(batches)} at the learning rate {groups[0][1]:g}"
            raise ValueError(f"{title}: the loss is not finite {where}")
        gradients: Sequence[Tensor | None] = [None] * len(exact)
        if loss.requires_grad:
            gradients = torch.autograd.grad(loss, list(exact), allow_unused=True)
        for value, gradient in zip(exact.values(), gradients, strict=True):
            value.grad = None if gradient is None else gradient.to(value.dtype)
        if largest_norm is not None:
            torch.nn.utils.clip_grad_norm_(exact.values(), largest_norm)
        optimizer.step()
        schedule.step()
        set_values(list(exact), list(exact.values()))
        yield loss.item(), gradients


def copy_values(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return copies of the values of parameters, for `set_values`."""
    return [parameter.detach().clone() for parameter in parameters]


def set_values(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    """Copy values into parameters."""
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


@contextmanager
def fit_head(
    model: nn.Module,
    head: Sequence[nn.Module],
    batches: Sequence[Batch],
    *,
    steps: int = STEPS,
    seed: int = 0,
    keep: bool = False,
    track: Track = hide_progress,
) -> Iterator[None]:
    """Fit the parameters of a head by AdamW, one batch per step and without dropout; restore them, or `keep` them.

    `head` lists the modules that are trained in full alongside the adapter: in a PEFT wrapper, its `modules_to_save`
    wrappers, whose active copies are fitted. Leave it empty if the head is pretrained, as in a language model: nothing
    is then fitted. Parameters that other modules use too, such as tied embeddings, are left unchanged. The batches are
    read over and over, each time in a new order drawn from `seed`. A fit that blocks all gradients of the head
    (uninformative features can drive its ReLUs to zero) is repeated from the beginning with smaller steps.

    Raises:
        ValueError: if there are no examples; labels are missing or all equal; the loss is not finite or does not depend
            on the head.
    """
    if not batches:
        raise ValueError("no examples: there are no batches")
    parameters = head_parameters(model, head)
    begin = copy_values(parameters)
    is_kept = False
    try:
        if steps and parameters:
            _check_labels(batches)
            planned = _in_rounds(batches, steps, seed)
            with preserve_state(model, parameters):
                for rate in RATES:
                    set_values(parameters, begin)
                    if not _is_dead_after(rate, model, parameters, planned, track):
                        break
        yield
        is_kept = keep
    finally:
        if not is_kept:
            set_values(parameters, begin)


def _in_rounds(batches: Sequence[Batch], steps: int, seed: int) -> list[Batch]:
    """Yield a batch per step: all batches again and again, each epoch in a new order."""
    draws = torch.Generator().manual_seed(seed)
    draw = partial(torch.randperm, len(batches), generator=draws)
    first = draw()  # each round is in an order of this order
    rounds = [first[draw()] for _ in range(0, steps, len(batches))]
    order = torch.cat(rounds).tolist()
    return [batches[index] for index in order[:steps]]


def _is_dead_after(
    rate: float,
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    batches: Sequence[Batch],
    track: Track,
) -> bool:
    # Take one step per batch. If none of the last gradients is left, the head has learned the batch by heart; if only
    # some are, they end within the head.
    reached: list[bool] = []
    for _, gradients in run_adamw(model, [(parameters, rate)], batches, "fit the head", track):
        reached = [bool(gradient.any()) for gradient in gradients if gradient is not None]
        if not reached:
            raise ValueError("the loss does not depend on the head: is this the head that the model calls?")
    return any(reached) and not all(reached)


def head_parameters(model: nn.Module, head: Sequence[nn.Module]) -> list[nn.Parameter]:
    """Return the parameters of a head that no other module uses."""
    parts = nn.ModuleList(head)
    inside = set(parts.modules())
    shared = set[nn.Parameter]()
    for module in model.modules():
        if module not in inside:
            shared.update(module.parameters(recurse=False))
    return [parameter for parameter in parts.parameters() if parameter not in shared]


def _check_labels(batches: Sequence[Batch]) -> None:
    every = [batch["labels"] for batch in batches if "labels" in batch]  # the model returns no loss without labels
    if not every:
        return
    first = every[0][0]
    if all(labels.shape[1:] == first.shape and (labels == first).all() for labels in every):
        count = sum(map(len, every))
        raise ValueError(f"all {count} examples have the label {first.tolist()}: a head needs at least two")
