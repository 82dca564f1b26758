"""A head in which the tenants of a group share rows, while an initialization reads examples.

So a short LoRA run learns one answer from the texts of all tenants with the same labels, as training begins to do.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from lsr.serve.admission import heads_in
from pipeline.tasks import Task
from pipeline.tasks.groups import Group, find_groups


class SharedRows(nn.Module):
    """A linear layer whose outputs share rows within groups, beginning with the mean; other outputs keep their own."""

    places: Tensor  # (outputs,): the row of each output

    def __init__(self, layer: nn.Linear, groups: Sequence[Group]) -> None:
        super().__init__()
        places = torch.full((layer.out_features,), -1)
        first = 0
        for group in groups:
            labels = group.outputs.shape[1]
            places[torch.from_numpy(group.outputs)] = torch.arange(first, first + labels)
            first += labels
        is_own = places < 0
        places[is_own] = torch.arange(first, first + int(is_own.sum()))
        self.register_buffer("places", places.to(layer.weight.device), persistent=False)
        self.weight = nn.Parameter(self._mean_rows(layer.weight.detach()))
        self.bias = None
        if layer.bias is not None:
            column = layer.bias.detach()[:, None]
            self.bias = nn.Parameter(self._mean_rows(column).squeeze(1))

    def _mean_rows(self, values: Tensor) -> Tensor:  # (outputs, width) -> (rows, width)
        sizes = self.places.bincount()
        sums = torch.zeros(len(sizes), values.shape[1], dtype=torch.float64, device=values.device)
        sums.index_add_(0, self.places, values.double())
        means = sums / sizes[:, None]
        return means.to(values)

    def forward(self, x: Tensor) -> Tensor:
        """Return all outputs."""
        # Unlike indexing, an embedding adds up gradients in a fixed order.
        weight = functional.embedding(self.places, self.weight)
        if self.bias is None:
            return functional.linear(x, weight)
        columns = functional.embedding(self.places, self.bias[:, None])
        bias = columns.squeeze(1)
        return functional.linear(x, weight, bias)

    @torch.no_grad()
    def copy_to(self, layer: nn.Linear) -> None:
        """Copy the row of each output to a layer."""
        layer.weight.copy_(self.weight[self.places])
        if self.bias is not None:
            layer.bias.copy_(self.bias[self.places])


@contextmanager
def share_rows(
    base: PreTrainedModel,
    task: Task,
    head: str,
    *,
    keep: bool,
) -> Iterator[None]:
    """Let the tenants of each group share rows of the head, unless `tenants.head` is `own`.

    Afterwards the head has these rows with `keep`, and its own ones without.
    """
    groups = [] if head == "own" else find_groups(task.facts)
    if not groups:
        yield
        return
    name = heads_in(base)[-1]
    layer = base.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    shared = SharedRows(layer, groups)
    base.set_submodule(name, shared)
    try:
        yield
    finally:
        base.set_submodule(name, layer)
    if keep:
        shared.copy_to(layer)
