"""Gradients of the loss with respect to the weights of layers, over a few batches, for `gradient`.

The layers are those that `model` calls: in a PEFT wrapper, the base layers. The gradients are float64, on the CPU.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import cast

import torch
from torch import Tensor, nn

from lsr.algebra.spectrum import Matrix
from lsr.init.head import STEPS, fitted_head
from lsr.init.passes import Batch, Track, loss_of, size_of, undisturbed, untracked


def examples_gradients(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    head: Sequence[nn.Module] = (),
    *,
    steps: int = STEPS,
    seed: int = 0,
    track: Track = untracked,
) -> dict[str, Matrix]:  # (m, n) each
    """Return the mean of dL/dW over all examples for each layer, with W as in y = W x whatever the layer's layout.

    `model(**batch).loss` is taken to be the mean over the batch, so each batch is weighted by its size. Takes one pass,
    without dropout. Only the weights of these layers get a gradient, frozen ones too; parameters, their `requires_grad`
    and their `grad` are left unchanged.

    Each layer's gradient is added to its total and freed before the backward pass reaches the next layer. The gradients
    are those through a head fitted for `steps` steps, which is restored afterwards: training starts from the original
    head, as the fitted one did no better. The batches are read once and kept in memory. Deterministic: equal inputs
    give equal bytes.

    Raises:
        ValueError: as `lsr.init.head.fitted_head`; or if there are no examples or no loss, a layer is never called, or
            its gradient is not finite; names the layer.

    Reference: LoRA-GA (Wang et al. 2024, arXiv 2407.05000) and LoRA-One (Zhang et al. 2025, arXiv 2502.01235), which
    initialize from the gradient's singular vectors.
    """
    listed, totals = list(batches), dict[Tensor, Tensor]()
    weights = {name: cast("nn.Parameter", layer.weight) for name, layer in layers.items()}

    def add(weight: Tensor) -> None:
        gradient = cast("Tensor", weight.grad).to("cpu", torch.float64)
        totals.setdefault(weight, torch.zeros_like(gradient)).add_(gradient, alpha=size)
        weight.grad = None  # free it before the next layer's is computed

    with (
        fitted_head(model, head, listed, steps=steps, seed=seed, track=track),
        undisturbed(model, weights.values()),
        torch.enable_grad(),
        ExitStack() as hooks,
    ):
        for weight in dict.fromkeys(weights.values()):  # some are tied
            hooks.enter_context(weight.register_post_accumulate_grad_hook(add))
        for batch in track(listed, "gradients"):
            loss, size = loss_of(model, batch), size_of(batch)
            if loss.requires_grad:
                loss.backward(inputs=list(weights.values()))
    examples = sum(map(size_of, listed))
    return {name: _mean(totals.get(weights[name]), examples, name, layer) for name, layer in layers.items()}


def _mean(total: Tensor | None, examples: int, name: str, layer: nn.Module) -> Tensor:
    if total is None:
        raise ValueError(f"layer {name!r} was never called, or the loss does not depend on it")
    if not torch.isfinite(total).all():
        raise ValueError(f"layer {name!r}: its gradient over these examples is not finite")
    return (total if isinstance(layer, nn.Linear) else total.T) / examples  # Conv1D has the other layout
