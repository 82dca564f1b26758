"""What the loss wants of layers, over a few batches of examples: for initializations that read the gradient.

The layers are those that `model` calls; in a PEFT wrapper, the base layers. A batch goes into `model(**batch)` as it
is, so it must be on the model's device. The gradients are float64, on the CPU.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn


def weight_gradients(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Mapping[str, Tensor]],
) -> dict[str, Tensor]:  # (m, n) each
    """Return the mean over all examples of dL/dW for each layer, with W as in y = W x whatever layout the layer has.

    `model(**batch).loss` is taken as the mean over the batch's examples: a batch weighs as many as it has. One pass
    without dropout. Frozen weights get a gradient too, and nothing else does; parameters, their `requires_grad` and
    their `grad` stay as they were.

    Raises:
        ValueError: if there are no examples or no loss, or a layer was never called or its gradient is not finite;
            names the layer.

    Reference: LoRA-GA (Wang et al. 2024, arXiv 2407.05000), LoRA-One (Zhang et al. 2025, arXiv 2502.01235), which start
    from its singular vectors.
    """
    weights = {name: cast("nn.Parameter", layer.weight) for name, layer in layers.items()}
    totals: dict[str, Tensor] = {}
    examples = 0
    with _without_dropout(model), _only_these_require_grad(model, list(weights.values())):
        for batch in batches:
            for name, gradient in _loss_gradients(model, batch, weights).items():
                total = totals.setdefault(name, torch.zeros(gradient.shape, dtype=torch.float64))
                total.add_(gradient.to("cpu", torch.float64), alpha=_size(batch))
            examples += _size(batch)
    if not examples:
        raise ValueError("no examples: there is no batch to look at")
    for name in layers:
        if name not in totals:
            raise ValueError(f"layer {name!r} was never called, or the loss does not depend on it")
        if not torch.isfinite(totals[name]).all():
            raise ValueError(f"layer {name!r}: its gradients over these examples are not finite")
    # Conv1D of GPT-2 keeps its weight transposed: (in_features, out_features).
    return {
        name: (totals[name] if isinstance(layer, nn.Linear) else totals[name].T.contiguous()) / examples
        for name, layer in layers.items()
    }


def _loss_gradients(
    model: nn.Module, batch: Mapping[str, Tensor], weights: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:  # of the weights that the loss depends on, in the layer's layout
    with torch.enable_grad():
        loss = getattr(model(**batch), "loss", None)
    if loss is None:
        raise ValueError(f"the model returned no loss: batches need labels, these have {', '.join(batch)}")
    if not loss.requires_grad:
        return {}
    gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(weights, gradients, strict=True) if gradient is not None}


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
def _only_these_require_grad(model: nn.Module, weights: Sequence[nn.Parameter]) -> Iterator[None]:
    flags = {parameter: parameter.requires_grad for parameter in (*model.parameters(), *weights)}
    try:
        for parameter in flags:
            parameter.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for parameter, required in flags.items():
            parameter.requires_grad_(required)


def _size(batch: Mapping[str, Tensor]) -> int:
    return len(next(iter(batch.values())))
