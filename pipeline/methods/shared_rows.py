"""Rows of a head that groups of tenants share, in a short LoRA run of an initialization and in training.

So an initialization that reads examples learns one answer from the texts of all tenants with the same labels, as
training begins to do.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from pipeline.methods import heads
from pipeline.tasks import Task
from pipeline.tasks.groups import Group, find_groups


class GroupRows(nn.Module):
    """A parametrization of a weight or bias (outputs, ...): the rows of groups, plus deviations, for their outputs.

    Other outputs keep rows of their own. It starts with the mean of the tenants' rows for each group.
    """

    outputs: Tensor  # (grouped outputs,): their positions in the head
    places: Tensor  # (grouped outputs,): the row of its group that each has
    kept: Tensor  # (grouped outputs, 1): the share of the deviations that is kept; 1 in training

    def __init__(self, value: Tensor, groups: Sequence[Group], *, has_deviations: bool) -> None:
        super().__init__()
        matrix = value.detach().flatten(1) if value.dim() > 1 else value.detach()[:, None]
        outputs = [torch.from_numpy(group.outputs).to(value.device) for group in groups]
        means = list[Tensor]()
        for own in outputs:
            mean = matrix[own].double().mean(dim=0)
            means.append(mean.to(matrix))
        self.rows = nn.Parameter(torch.cat(means))
        all_outputs = torch.cat([own.flatten() for own in outputs])
        count = len(all_outputs)
        self.deviations = None
        if has_deviations:
            zeros = matrix.new_zeros(count, matrix.shape[1])
            self.deviations = nn.Parameter(zeros)
        places = number_rows(outputs)
        kept = matrix.new_ones(count, 1)
        self.register_buffer("outputs", all_outputs, persistent=False)
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("kept", kept, persistent=False)

    def forward(self, own: Tensor) -> Tensor:
        """Return the rows of all outputs."""
        rows = functional.embedding(self.places, self.rows)  # unlike indexing, it adds up gradients in a fixed order
        if self.deviations is not None:
            rows = rows + self.kept * self.deviations
        return own.index_copy(0, self.outputs, rows.reshape(-1, *own.shape[1:]))


def number_rows(outputs: Sequence[Tensor]) -> Tensor:
    """Return the row of each grouped output, given the outputs (tenants, labels) of each group."""
    places = list[Tensor]()
    first = 0
    for own in outputs:
        tenants, labels = own.shape
        numbers = torch.arange(first, first + labels, device=own.device)
        places.append(numbers.repeat(tenants))
        first += labels
    return torch.cat(places)


def share_layer(layer: nn.Linear, groups: Sequence[Group], *, has_deviations: bool) -> None:
    """Let the outputs of each group share rows of a layer's weight and bias."""
    for name, value in list(layer.named_parameters()):
        rows = GroupRows(value, groups, has_deviations=has_deviations)
        parametrize.register_parametrization(layer, name, rows)


def unshare(layer: nn.Linear, *, keep: bool) -> None:
    """Give each output a row of its own again: the one that it shared with `keep`, and without the one before."""
    parametrized: Any = layer.parametrizations
    for name in list(parametrized):
        parametrize.remove_parametrizations(layer, name, leave_parametrized=keep)


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
    layer = heads.last_layer_of_base(base)
    share_layer(layer, groups, has_deviations=False)
    try:
        yield
    except BaseException:
        unshare(layer, keep=False)
        raise
    unshare(layer, keep=keep)
