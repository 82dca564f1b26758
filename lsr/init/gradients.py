"""Gradients of the loss with respect to the weights of layers, over a few batches, for `gradient`.

The layers are those that `model` calls: in a PEFT wrapper, the base layers. The gradients are float64, on the CPU.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from lsr.algebra.sketch import Sketch
from lsr.algebra.spectrum import Matrix
from lsr.init.head import STEPS, fitted_head
from lsr.init.passes import Batch, Track, loss_of, size_of, undisturbed, untracked

DENSE_ENTRIES = 2**24  # per layer: 128 MiB in float64
SKETCH_RANK = 64


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
    """Return `weight_gradients` of the layers through a head fitted for `steps` steps, which is restored afterwards.

    The fitted head serves the gradients only. Training starts from the original head: the fitted one did no better.
    The batches are read once and kept in memory. Deterministic: equal inputs give equal bytes.

    Raises:
        ValueError: as `lsr.init.head.fitted_head` and `weight_gradients`.
    """
    listed = list(batches)
    with fitted_head(model, head, listed, steps=steps, seed=seed, track=track):
        return weight_gradients(model, layers, listed, seed=seed, track=track)


def weight_gradients(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Sequence[Batch],
    *,
    dense_entries: int = DENSE_ENTRIES,
    rank: int = SKETCH_RANK,
    seed: int = 0,
    track: Track = untracked,
) -> dict[str, Matrix]:  # (m, n) each
    """Return the mean of dL/dW over all examples for each layer, with W as in y = W x whatever the layer's layout.

    `model(**batch).loss` is taken to be the mean over the batch, so each batch is weighted by its size. Takes one pass,
    without dropout. Only the weights of these layers get a gradient, frozen ones too; parameters, their `requires_grad`
    and their `grad` are left unchanged.

    Each layer's gradient is added to its total and freed before the backward pass reaches the next layer. For a layer
    with more than `dense_entries` entries the total is a sketch seeded by `seed`; it is returned as a pair (m, k),
    (k, n), about as close as the best approximation of rank `rank`; see `lsr.algebra.sketch`.

    Raises:
        ValueError: if there are no examples or no loss, a layer is never called, or its gradient is not finite; names
            the layer.

    Reference: LoRA-GA (Wang et al. 2024, arXiv 2407.05000) and LoRA-One (Zhang et al. 2025, arXiv 2502.01235), which
    initialize from the gradient's singular vectors.
    """
    if not batches:
        raise ValueError("no examples: there are no batches to compute gradients on")
    totals = {_weight(layer): _Total(layer, dense_entries, rank, seed) for layer in layers.values()}
    with undisturbed(model, totals):
        for batch in track(batches, "gradients"):
            _add_gradients(model, batch, totals)
    examples = sum(map(size_of, batches))
    return {name: _mean(totals[_weight(layer)], examples, name) for name, layer in layers.items()}


class _Total:
    """The sum of a layer's gradients, (m, n); `value` is None before the first."""

    def __init__(self, layer: nn.Module, dense_entries: int, rank: int, seed: int) -> None:
        # GPT-2's Conv1D stores its weight transposed: (in_features, out_features).
        self._is_transposed = not isinstance(layer, nn.Linear)
        self._is_dense = _weight(layer).numel() <= dense_entries
        self._rank, self._seed = rank, seed
        self.value: Tensor | Sketch | None = None

    def add(self, gradient: Tensor, times: int) -> None:
        """Add a gradient in the layout of the weight."""
        matrix = gradient.T if self._is_transposed else gradient
        if self.value is None:
            shape = tuple(matrix.shape)
            dense = self._is_dense
            self.value = torch.zeros(shape, dtype=torch.float64) if dense else Sketch(shape, self._rank, self._seed)
        if isinstance(self.value, Sketch):
            self.value.add(matrix, times)
        else:
            self.value.add_(matrix.to("cpu", torch.float64), alpha=times)


def _add_gradients(model: nn.Module, batch: Batch, totals: Mapping[nn.Parameter, _Total]) -> None:
    def add(weight: Tensor) -> None:
        totals[cast("nn.Parameter", weight)].add(cast("Tensor", weight.grad), size_of(batch))
        weight.grad = None  # free it before the next layer's is computed

    hooks = [weight.register_post_accumulate_grad_hook(add) for weight in totals]
    try:
        with torch.enable_grad():
            loss = loss_of(model, batch)
            if loss.requires_grad:
                loss.backward(inputs=list(totals))
    finally:
        for hook in hooks:
            hook.remove()


def _mean(total: _Total, examples: int, name: str) -> Matrix:
    value = total.value
    if value is None:
        raise ValueError(f"layer {name!r} was never called, or the loss does not depend on it")
    if not (value.is_finite() if isinstance(value, Sketch) else torch.isfinite(value).all()):
        raise ValueError(f"layer {name!r}: its gradient over these examples is not finite")
    if isinstance(value, Tensor):
        return value / examples
    left, right = value.pair()
    return left, right / examples


def _weight(layer: nn.Module) -> nn.Parameter:
    return cast("nn.Parameter", layer.weight)
