"""Groups of tenants with the same labels, whose mean gives head rows for a tenant without examples.

Tenants of a bank with the same set of labels, in any order, form a group. The rows of a group are the mean of its
tenants' rows, label by label.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches

import torch
from torch import Tensor

from lsr.errors import InputError, shortened
from lsr.loading.contents import Contents
from lsr.serve.bank import AdapterBank

MAX_SHOWN = 5  # sets of labels in a message
FITTED = ("thresholds", "temperatures")  # keys of task.json that are one tenant's own

Labels = tuple[str, ...] | None  # labels in the order of the head's rows; None for regression
Groups = dict[frozenset[str], list[str]]  # names of tenants by set of labels, empty for regression


def find_groups(bank: AdapterBank) -> Groups:
    """Group the tenants of a bank with a shared adapter by their sets of labels.

    Raises:
        InputError: if the bank has no shared adapter.
    """
    if bank.shared_adapter is None:
        raise InputError("only a bank whose adapters share one has rows for a tenant without labels")
    groups = Groups()
    for name in bank.names:
        group = frozenset(labels_of(bank, name) or ())
        groups.setdefault(group, []).append(name)
    return groups


def labels_of(bank: AdapterBank, name: str) -> Labels:
    """Return the labels of a tenant in the order of its head's rows; None for regression."""
    labels = bank.task_infos[name].get("labels")
    return None if labels is None else tuple(labels)


def make_member(bank: AdapterBank, name: str, labels: Labels) -> Contents:
    """Return contents for a tenant with the labels of a group: the group's mean rows, in the order of its labels.

    Raises:
        InputError: if a label is given twice, no tenant has these labels, or the tenants with them differ in more than
            their heads.
    """
    given = labels or ()
    if len(set(given)) < len(given):
        raise InputError(f"labels: {', '.join(given)}: each must be given once")
    groups = find_groups(bank)
    members = groups.get(frozenset(given))
    if members is None:
        raise InputError(_describe_missing(given, groups))
    others = [member for member in members if member != name]
    each = [bank.contents(member) for member in others or members]
    for contents in each:
        if contents.updates:
            raise InputError(f"{contents.source}: has an update of its own on top of the shared adapter")
    first = each[0]
    task = {**(first.task or {}), "labels": None if labels is None else list(labels)}
    for key in FITTED:
        task.pop(key, None)
    return replace(first, source=name, heads=_mean_rows(each, labels), task=task)


def _mean_rows(each: Sequence[Contents], labels: Labels) -> Mapping[str, Tensor]:
    """Return the mean of heads by tensor, with one row per label in this order."""
    sums = dict[str, Tensor]()
    for contents in each:
        order = _order_of(contents, labels)
        for key, value in contents.heads.items():
            rows = value.double()[order]
            sums[key] = sums[key] + rows if key in sums else rows
    return {key: (value / len(each)).float() for key, value in sums.items()}


def _order_of(contents: Contents, labels: Labels) -> Tensor:
    """Return the row of each of these labels in a tenant's head."""
    if labels is None:
        return torch.tensor([0])
    own = list((contents.task or {})["labels"])
    return torch.tensor([own.index(label) for label in labels])


def _describe_missing(labels: Sequence[str], groups: Groups) -> str:
    """Return the message that no tenant has these labels, with the existing sets of labels."""
    sets = [", ".join(sorted(group)) or "a number" for group in groups]
    given = ", ".join(labels) or "a number"
    folded = {text.casefold(): text for text in sets}
    near = get_close_matches(", ".join(sorted(labels)).casefold(), folded, 1)
    guess = f"; did you mean {folded[near[0]]}?" if near else ""
    shown = "; ".join(sets[:MAX_SHOWN])
    more = f"; and {len(sets) - MAX_SHOWN} more" if len(sets) > MAX_SHOWN else ""
    return f"labels: no tenant of the bank has {shortened(given)}{guess}; there are: {shown}{more}"
