"""A head whose rows are shared by a group of tenants, plus a regularized deviation of each tenant.

A tenant's row for a label is the group's row for it plus a deviation, which starts at zero (Evgeniou & Pontil,
"Regularized multi-task learning", 2004). Weight decay limits deviations in training; then the validation split chooses
the share of them that is kept, from none, where tenants only share rows, to all of them. Saved rows are sums, so a
trained adapter has the same form as with heads of their own.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import DataCollatorWithPadding

from pipeline import evaluation
from pipeline.core.errors import UserError
from pipeline.methods import heads
from pipeline.methods.heads import GroupHead, Rows
from pipeline.methods.label_units import LabelUnits, standardize_numbers
from pipeline.methods.shared_rows import GroupRows, share_layer, unshare
from pipeline.params import PARAMS
from pipeline.tasks import Outcome, Task
from pipeline.tasks.calibration import Classified, fit_temperature
from pipeline.tasks.groups import Group, find_groups
from pipeline.tasks.head import Head
from pipeline.training.head_regression import Unscored

SHARES = tuple(np.linspace(0, 1, 11).tolist())  # candidates for the share of the deviations that is kept


class SharedHead(NamedTuple):
    """The last layer of a head in which groups of tenants share rows."""

    layer: nn.Linear
    groups: Sequence[Group]
    units: LabelUnits | None  # those in which the parameters of the layer predict numbers; None if they predict labels

    @property
    def parametrizations(self) -> dict[str, GroupRows]:
        """The parametrizations of weight and bias by name."""
        parametrized: Any = self.layer.parametrizations
        return {name: parametrizations[0] for name, parametrizations in parametrized.items()}

    @torch.no_grad()
    def keep(self, shares: Sequence[float]) -> None:
        """Keep these shares of the deviations of the tenants of each group."""
        sizes = [group.outputs.size for group in self.groups]
        for rows in self.parametrizations.values():
            for kept, share in zip(rows.kept.split(sizes), shares, strict=True):
                kept.fill_(share)

    def keep_all(self) -> None:
        """Keep all deviations, as in training."""
        self.keep([1.0] * len(self.groups))

    @torch.no_grad()
    def rows(self, share: float) -> Rows:
        """Return the rows of all outputs with this share of the deviations, which the layer keeps.

        Rows of numbers predict them in the units of the labels.
        """
        self.keep([share] * len(self.groups))
        weight = self.layer.weight.float().cpu()
        bias = None if self.layer.bias is None else self.layer.bias.float().cpu()
        if self.units is not None:
            weight = weight * self.units.factor
            bias = None if bias is None else self.units.to_labels(bias)
        return Rows(weight, bias)

    def keep_as_before(self, group_heads: Sequence[GroupHead]) -> list[GroupHead]:
        """Keep the shares that were chosen for an earlier model of these groups, and return the rows of this one."""
        without = self.rows(0.0)
        self.keep([head.kept for head in group_heads])
        return [head._replace(rows=without.select(head.group.outputs[0])) for head in group_heads]

    def add_deviations(self) -> None:
        """Make the rows of all outputs, which are sums, the plain parameters of the layer."""
        unshare(self.layer, keep=True)


@contextmanager
def prepare_head(task: Task, model: PeftModel, head: str) -> Iterator[SharedHead | None]:
    """Let a head learn standardized numbers, while a model is trained, and share rows as `share` describes.

    Yields the shared head, whose deviations are to be added before the end; None if no group shares rows.
    """
    find_layer = partial(heads.find_last_layer, model)
    with standardize_numbers(task, find_layer) as units:
        yield share(task, model, head, units)


def share(task: Task, model: PeftModel, head: str, units: LabelUnits | None) -> SharedHead | None:
    """Let groups of tenants share rows of the head's last layer, as `tenants.head` selects; None if there are none.

    `units` are those in which the parameters of the layer predict numbers, see `pipeline.methods.label_units`.

    Raises:
        UserError: if no two tenants have the same labels, although `head` is `shared`.
    """
    groups = [] if head == "own" else find_groups(task.facts)
    if not groups:
        if head == "shared":
            reason = "no two tenants have the same labels"
            raise UserError(f"{PARAMS}: tenants.head: shared has no effect: {reason}; leave it at auto")
        return None
    layer = heads.find_last_layer(model)
    share_layer(layer, groups, has_deviations=head == "auto")
    return SharedHead(layer, groups, units)


def choose_shares(
    task: Task,
    model: PeftModel,
    shared: SharedHead,
    validation: Dataset,
    collate: DataCollatorWithPadding,
    batch_size: int,
) -> list[GroupHead]:
    """Keep the share of each group's deviations that has the lowest validation loss, and return the groups' rows.

    The loss is the mean over tenants; of ties, the smallest share is kept. A group without examples keeps all.
    """
    with heads.return_inputs(shared.layer):
        features = evaluation.outputs(task.head, Unscored(model), validation, collate, batch_size)
    outcome = evaluation.outcome(features, validation)
    without = shared.rows(0.0)
    deviating = shared.rows(1.0)
    group_heads = [_choose_share(task.head, group, outcome, without, deviating) for group in shared.groups]
    shared.keep([head.kept for head in group_heads])
    return group_heads


def _choose_share(head: Head, group: Group, outcome: Outcome, shared: Rows, deviating: Rows) -> GroupHead:
    members = pd.Index(group.tenants).get_indexer(pd.Index(outcome.groups))
    examples = np.flatnonzero(members >= 0)
    tenants = members[examples]
    in_own_order = np.sort(group.outputs, axis=1)  # columns in the order of each tenant's labels
    outputs = torch.from_numpy(in_own_order[tenants])
    features = outcome.outputs[examples]
    labels = outcome.labels[examples]
    without = shared.logits(features, outputs)
    change = deviating.logits(features, outputs) - without
    losses = list[float]()
    for share in SHARES:
        each = head.losses(without + share * change, torch.from_numpy(labels))
        of_tenants = pd.Series(each.numpy()).groupby(tenants).mean()
        losses.append(of_tenants.mean())
    return GroupHead(
        group,
        rows=shared.select(group.outputs[0]),
        temperature=fit_temperature([Classified(without.numpy(), labels)]) if head.has_probabilities else None,
        kept=SHARES[int(np.argmin(losses))] if len(examples) else 1.0,
    )
