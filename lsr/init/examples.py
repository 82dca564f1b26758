"""Statistics from training examples: loss gradients, or the update of a short LoRA run.

The layers are those that `model` calls: in a PEFT wrapper, the base layers. For the update, a LoRA on each layer is
trained with the head for one epoch on the examples. The initialization uses the product of the LoRA factors; the model
is left unchanged, except that the head may be kept. Results are float64 on the CPU.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from statistics import fmean
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsr.init.context import Matrices
from lsr.init.passes import (
    STEPS,
    Batch,
    Track,
    copy_values,
    fit_head,
    head_parameters,
    hide_progress,
    loss_of,
    preserve_state,
    run_adamw,
    set_values,
    widths,
)

RANK = 16
RATE = 0.001
HEAD_RATE = 0.002
SCALING = 2.0
LARGEST_NORM = 1.0  # limit to the gradient norm of a step
FAILED = 0.95  # a run failed if the mean loss of its last quarter is above this fraction of the first quarter's
JUDGED_STEPS = 32  # shortest run with a head that is judged: in shorter ones, the means of quarters are mostly noise
# The share of the learning rates, and that of the steps over which they rise; each follows if those before have failed.
ATTEMPTS = ((1.0, 0.0), (1.0, 0.1), (0.5, 0.1))

Layers = Mapping[str, nn.Module]  # adapted layers by name
Pair = tuple[nn.Parameter, nn.Parameter]  # A (k, n), B (m, k)


def examples_gradients(
    model: nn.Module,
    layers: Layers,
    batches: Iterable[Batch],
    head: Sequence[nn.Module] = (),
    *,
    steps: int = STEPS,
    seed: int = 0,
    track: Track = hide_progress,
) -> Matrices:  # (m, n) each
    """Return the mean of dL/dW over all examples for each layer, with W as in y = W x whatever the layer's layout.

    `model(**batch).loss` is taken to be the mean over the batch, so each batch is weighted by its size. It takes one
    epoch, without dropout. Only the weights of these layers, even frozen ones, get a gradient; all else is left
    unchanged.

    Each layer's gradient is added to its total and freed before the backward pass reaches the next layer. The gradients
    are those through a head fitted for `steps` steps, which is restored afterwards: training starts from the original
    head, as the fitted one did no better. The batches are read once and kept in memory. Deterministic: equal inputs
    give equal bytes.

    Raises:
        ValueError: as `fit_head`; or if there are no examples or no loss, a layer is never called, or its gradient
            is not finite; names the layer.

    Reference: LoRA-GA (Wang et al. 2024, arXiv 2407.05000) and LoRA-One (Zhang et al. 2025, arXiv 2502.01235), which
    initialize from the gradient's singular vectors.
    """
    listed = list(batches)
    weights = list(dict.fromkeys(layer.get_parameter("weight") for layer in layers.values()))  # some are tied
    totals: dict[Tensor, Tensor] = {}
    examples = 0

    def add(weight: Tensor) -> None:
        gradient = cast("Tensor", weight.grad).to("cpu", torch.float64)
        totals.setdefault(weight, torch.zeros_like(gradient)).add_(gradient, alpha=size)
        weight.grad = None  # free it before the next layer's is computed

    with (
        fit_head(model, head, listed, steps=steps, seed=seed, track=track),
        preserve_state(model, weights),
        torch.enable_grad(),
        ExitStack() as hooks,
    ):
        for weight in weights:
            hooks.enter_context(weight.register_post_accumulate_grad_hook(add))
        for batch in track(listed, "gradients"):
            loss = loss_of(model, batch)
            size = len(next(iter(batch.values())))
            examples += size
            if loss.requires_grad:
                loss.backward(inputs=weights)
    return _means(layers, totals, examples)


def _means(layers: Layers, totals: Mapping[Tensor, Tensor], examples: int) -> Matrices:  # (m, n) each
    # The mean gradient of each layer, from the totals by weight.
    gradients = {}
    for name, layer in layers.items():
        total = totals.get(layer.get_parameter("weight"))
        if total is None:
            raise ValueError(f"layer {name!r} was never called, or the loss does not depend on it")
        if not torch.isfinite(total).all():
            raise ValueError(f"layer {name!r}: its gradient over these examples is not finite")
        total = total if isinstance(layer, nn.Linear) else total.T  # Conv1D has the other layout
        gradients[name] = total / examples
    return gradients


def examples_updates(
    model: nn.Module,
    layers: Layers,
    batches: Iterable[Batch],
    head: Sequence[nn.Module] = (),
    *,
    steps: int = STEPS,
    rank: int = RANK,
    seed: int = 0,
    keep_head: bool = False,
    track: Track = hide_progress,
) -> Matrices:  # (m, k) and (k, n) each
    """Return each layer's update as a product of two factors of rank `rank`.

    The model is left unchanged, and so is the head, unless `keep_head` is true.

    First `steps` steps fit the head, as `fit_head` does. Then LoRA and head take one AdamW step per batch, in order,
    without dropout, with learning rates that decay linearly to zero. If there is a head and the loss hardly falls over
    at least `JUDGED_STEPS` steps, this is done again with rates that first rise linearly, and once more with half of
    these rates if that fails, too; the run that ends lowest is used, and a warning says which. Without a head, as in a
    language model, the loss begins low and falls little in any case. Small batches work best, for example of eight. The
    batches are read once and kept in memory. Deterministic: equal inputs give equal bytes. Frozen weights need no
    gradient, so they may be quantized.

    Raises:
        ValueError: as `fit_head`; or if there are no examples, the loss is not finite, or it does not depend on a
            layer; names the layer.

    Reference: LoRA (Hu et al. 2021, arXiv 2106.09685), used here only to find the update.
    """
    listed = list(batches)
    parameters = head_parameters(model, head)
    pairs = _pairs(layers, rank, seed)
    trained = [*chain(*pairs.values()), *parameters]
    with (
        fit_head(model, head, listed, steps=steps, seed=seed, keep=keep_head, track=track),
        preserve_state(model, trained),
        _add_updates(layers, pairs),
    ):
        _train(model, pairs, parameters, listed, track)
    updates = {}
    for name, (a, b) in pairs.items():
        left = b.detach().cpu().double()
        updates[name] = SCALING * left, a.detach().cpu().double()
    return updates


def _pairs(layers: Layers, rank: int, seed: int) -> dict[str, Pair]:
    """Return a fresh LoRA for each layer, in at least float32: A random, B zero."""
    draws = torch.Generator().manual_seed(seed)
    pairs = {}
    for name, layer in layers.items():
        n, m = widths(layer)
        a = torch.randn(rank, n, generator=draws) / (3 * n) ** 0.5  # the variance of LoRA's A
        like = layer.get_parameter("weight")
        b = torch.zeros(m, rank, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
        pairs[name] = nn.Parameter(a.to(b)), nn.Parameter(b)
    return pairs


@contextmanager
def _add_updates(layers: Layers, pairs: Mapping[str, Pair]) -> Iterator[None]:
    """Let each layer add the update of its pair to its output."""

    def add(pair: Pair, _: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        a, b = pair
        hidden = F.linear(x, a.to(x.dtype))
        added = F.linear(hidden, b.to(x.dtype))
        return output + SCALING * added.to(output.dtype)

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_hook(partial(add, pairs[name])))
        yield


def _train(
    model: nn.Module, pairs: Mapping[str, Pair], head: Sequence[nn.Parameter], batches: Sequence[Batch], track: Track
) -> None:
    # Run over the batches, and more gently while the loss hardly falls; keep the run that ends lowest.
    trained = [*chain(*pairs.values()), *head]
    is_judged = bool(head) and len(batches) >= JUDGED_STEPS
    begin = copy_values(trained)
    first = math.inf  # the mean loss of the first quarter of the first run
    ends: list[float] = []  # mean loss of each run's last quarter; infinity if the run diverged
    values = []  # the result of each run
    for slower, warm_up in ATTEMPTS:
        set_values(trained, begin)
        share = partial(_share, len(batches), round(warm_up * len(batches)))
        try:
            losses = _losses(model, pairs, head, batches, track, slower, share)
        except ValueError:
            if not ends:  # the first run must not diverge; later ones may
                raise
            losses = [math.inf]
        quarter = -(-len(losses) // 4)
        if not ends:
            first = fmean(losses[:quarter])
        ends.append(fmean(losses[-quarter:]))
        values.append(copy_values(trained))
        if not is_judged or min(ends) <= FAILED * first:
            break
    best = ends.index(min(ends))
    set_values(trained, values[best])
    if len(ends) > 1:
        _warn_of_repeated(first, ends, best)


def _losses(
    model: nn.Module,
    pairs: Mapping[str, Pair],
    head: Sequence[nn.Parameter],
    batches: Sequence[Batch],
    track: Track,
    slower: float,
    share: Callable[[int], float],
) -> list[float]:
    # Take a step per batch, with `slower` times the usual learning rates; return the losses.
    factors = list(chain(*pairs.values()))
    steps = run_adamw(
        model,
        [(factors, slower * RATE), (head, slower * HEAD_RATE)],
        batches,
        "short training run",
        track,
        share=share,
        weight_decay=0.0,
        largest_norm=LARGEST_NORM,
    )
    losses = []
    for loss, gradients in steps:
        for name, gradient in zip(pairs, gradients[::2], strict=False):  # the head's parameters are among them
            if gradient is None:
                raise ValueError(f"layer {name!r} was never called, or the loss does not depend on it")
        losses.append(loss)
    return losses


def _warn_of_repeated(first: float, ends: Sequence[float], best: int) -> None:
    slower_too = " and then with lower learning rates" if len(ends) > 2 else ""
    warnings.warn(
        f"the loss of the short LoRA run only went from {first:.3f} to {ends[0]:.3f}, so it was repeated with "
        f"a warm-up{slower_too}: run {1 + best} of {len(ends)} is used, which led to {ends[best]:.3f}",
        stacklevel=4,  # the caller of examples_updates
    )


def _share(count: int, rising: int, done: int) -> float:
    """Return the factor of the learning rates in a step: linear warm-up, then linear decay to zero."""
    if done < rising:
        return (done + 1) / rising
    return 1 - (done - rising) / (count - rising)
