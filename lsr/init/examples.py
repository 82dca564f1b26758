"""What the loss wants of layers, over a few batches of examples: for initializations that read the gradient.

The layers are those that `model` calls; in a PEFT wrapper, the base layers. The gradients are float64, on the CPU.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from lsr.algebra.sketch import Sketch
from lsr.algebra.spectrum import Matrix
from lsr.init.passes import Batch, loss_of, size_of, undisturbed

DENSE_ENTRIES = 2**24  # of a layer: 128 MiB in float64
SKETCH_RANK = 64


def weight_gradients(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    *,
    dense_entries: int = DENSE_ENTRIES,
    rank: int = SKETCH_RANK,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,  # told after each batch how many are done
) -> dict[str, Matrix]:  # (m, n) each
    """Return the mean over all examples of dL/dW for each layer, with W as in y = W x whatever layout the layer has.

    `model(**batch).loss` is taken as the mean over the batch's examples: a batch weighs as many as it has. One pass
    without dropout. Frozen weights get a gradient too, and nothing else does; parameters, their `requires_grad` and
    their `grad` stay as they were.

    A layer's gradient is added to its total, and freed, before the backward pass comes to the next layer. The total of
    a layer of more than `dense_entries` is a sketch, and a pair (m, k), (k, n) is returned that approximates it as well
    as matrices of `rank` about can; see `lsr.algebra.sketch`. `seed` draws what sketches need.

    Raises:
        ValueError: if there are no examples or no loss, or a layer was never called or its gradient is not finite;
            names the layer.

    Reference: LoRA-GA (Wang et al. 2024, arXiv 2407.05000), LoRA-One (Zhang et al. 2025, arXiv 2502.01235), which start
    from its singular vectors.
    """
    totals = {_weight(layer): _Total(layer, dense_entries, rank, seed) for layer in layers.values()}
    examples = 0
    with undisturbed(model, totals):
        for done, batch in enumerate(batches, 1):
            _add_gradients(model, batch, totals)
            examples += size_of(batch)
            if progress:
                progress(done)
    if not examples:
        raise ValueError("no examples: there is no batch to look at")
    return {name: _mean(totals[_weight(layer)], examples, name) for name, layer in layers.items()}


def widths(layer: nn.Module) -> tuple[int, int]:
    """Return in_features and out_features of a layer; Conv1D of GPT-2 keeps its weight so, transposed."""
    if isinstance(layer, nn.Linear):  # packed weights, of 4 bits, have other shapes
        return layer.in_features, layer.out_features
    n, m = _weight(layer).shape
    return n, m


class _Total:
    """The sum of the gradients of a layer, (m, n); there is none before the first."""

    def __init__(self, layer: nn.Module, dense_entries: int, rank: int, seed: int) -> None:
        # Conv1D of GPT-2 keeps its weight transposed: (in_features, out_features).
        self._is_transposed = not isinstance(layer, nn.Linear)
        self._is_dense = _weight(layer).numel() <= dense_entries
        self._rank, self._seed = rank, seed
        self.value: Tensor | Sketch | None = None

    def add(self, gradient: Tensor, times: int) -> None:
        """Add a gradient of the weight, in its layout."""
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
        weight.grad = None  # before the next layer has its own

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
        raise ValueError(f"layer {name!r}: its gradients over these examples are not finite")
    if isinstance(value, Tensor):
        return value / examples
    left, right = value.pair()
    return left, right / examples


def _weight(layer: nn.Module) -> nn.Parameter:
    return cast("nn.Parameter", layer.weight)
