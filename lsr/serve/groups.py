"""Groups of tenants with the same labels, whose rows answer for a tenant without examples.

Tenants of a bank with the same set of labels, in any order, form a group. Its rows of the head's last layer are those
that training has stored for it (see `lsr.serve.group_names`), or else the mean of its tenants' rows, label by label.
Tenants that differ in more than these rows are left out of the mean.
"""

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lsr.loading.contents import Contents
from lsr.serve.admission import EVEN
from lsr.serve.bank import AdapterBank
from lsr.serve.group_names import name_group
from lsr.serve.modules import SCALING
from lsr.serve.row_pool import RowPool
from lsr.serve.shared_adapter import last_layer
from lsr.tuner.files import Files
from lsr_onnx.answers import Labels
from lsr_onnx.errors import InputError, shortened

MAX_SHOWN = 5  # sets of labels in a message
MAX_COMPARED = 100  # sets of labels that are searched for similar spelling, which is slow
MAX_SPELLED = 200  # characters of each that are compared
WEIGHT = "weight"
A_NUMBER = "a number"
BLOCK = 4096  # rows that are summed at once
FITTED = ("threshold", "thresholds", "temperatures")  # keys of task.json that are one tenant's own

Orders = dict[Labels, list[str]]  # names of tenants by their labels in order
Groups = dict[frozenset[str], Orders]  # orders of labels by their set, empty for regression


class Group(NamedTuple):
    """The tenants with the same set of labels."""

    sources: Orders  # the tenants whose mean gives the group's rows, or the entry that has the group's own rows
    tenants: int


def find_groups(bank: AdapterBank) -> Groups:
    """Group the tenants of a bank with a shared adapter by their sets of labels.

    Raises:
        InputError: if the bank has no shared adapter.
    """
    _require_shared(bank)
    orders = Orders()
    for name in bank.names:
        order = labels_of(bank, name)
        orders.setdefault(order, []).append(name)
    groups = Groups()
    for order, names in orders.items():
        group = groups.setdefault(frozenset(order or ()), Orders())
        group[order] = names
    return groups


def _require_shared(bank: AdapterBank) -> Files:
    if bank.shared_adapter is None:
        raise InputError("only a bank whose adapters share one has rows for a tenant without labels")
    return bank.shared_adapter


def labels_of(bank: AdapterBank, name: str) -> Labels:
    """Return the labels of a tenant or of the entry of a group, in the order of its rows; None for regression."""
    labels = bank.version_of(name).task_info.get("labels")
    return None if labels is None else tuple(labels)


def _find_group(
    bank: AdapterBank,
    labels: Labels,
    without: str,
) -> Group:
    """Return the group of the tenants with this set of labels; `without` is a tenant that shall not be in the mean.

    If training has stored the group's own rows, they are the source, and otherwise its tenants are. A tenant that is
    the only one in its group is its own mean.

    Raises:
        InputError: if a label is given twice, or no tenant has these labels in a head that differs in nothing else.
    """
    given = labels or ()
    if len(set(given)) < len(given):
        raise InputError(f"labels: {_quote(given)}: each must be given once")
    with bank.shared.one_thread:
        groups = find_groups(bank)
        alike = _keep_alike(bank, groups.get(frozenset(given), Orders()))
        others = _leave_out(without, alike)
        count = sum(map(len, others.values()))
        entry = name_group(labels)
        if entry in bank.groups:
            order = labels_of(bank, entry)
            return Group({order: [entry]}, count)
        if frozenset(given) not in groups:
            raise InputError(describe_missing(given, groups))
        if not alike:
            raise InputError("labels: the tenants with these labels differ in more than the rows of their heads")
        return Group(others or alike, max(1, count))


def make_member(
    bank: AdapterBank,
    name: str,
    labels: Labels,
) -> Contents:
    """Return contents for a tenant with the labels of a group, as `join_group` does."""
    contents, _ = join_group(bank, name, labels)
    return contents


def join_group(
    bank: AdapterBank,
    name: str,
    labels: Labels,
) -> tuple[Contents, int]:
    """Return contents for a tenant, and the number of other tenants in its group.

    Its rows are those of the group, in the order of its labels.

    Raises:
        InputError: if a label is given twice, or no tenant has these labels in a head that differs in nothing else; or
            if the labels of some tenants exclude each other, and those of others do not.
    """
    with bank.shared.one_thread:
        sources, tenants = _find_group(bank, labels, without=name)
        layer = last_layer(_require_shared(bank))
        heads = _mean_rows(bank, layer, sources, labels)
        task = _task_of(bank, sources, labels)
        contents = Contents(name, bank.base_fields, {}, heads, (f".{layer}",), task)
        return contents, tenants


def find_present(
    bank: AdapterBank,
    name: str,
    labels: Labels,
) -> Contents | None:
    """Return the rows of a tenant of the bank, in the order of `labels`.

    None if the bank does not have it, or only with other labels or with more than rows of the head's last layer.
    """
    with bank.shared.one_thread:
        if name not in bank.versions:
            return None
        order = labels_of(bank, name)
        sources = _keep_alike(bank, {order: [name]})
        if {*(order or ())} != {*(labels or ())} or not sources:
            return None
        layer = last_layer(_require_shared(bank))
        heads = _mean_rows(bank, layer, sources, labels)
        return Contents(name, bank.base_fields, {}, heads, (f".{layer}",), None)


def _keep_alike(bank: AdapterBank, group: Orders) -> Orders:
    """Return the members of a group that have one row per label in the last layer, and nothing else of their own."""
    counts = _count_rows(bank).tolist()
    kept = Orders()
    for order, names in group.items():
        needed = 1 if order is None else len(order)
        members = [name for name in names if counts[bank.slots[name]] == needed]
        if members:
            kept[order] = members
    return kept


def _count_rows(bank: AdapterBank) -> Tensor:  # (slots,)
    """Return the number of rows that each adapter has in the head's last layer; 0 if it has anything else, too."""
    size = bank.shared.size
    last = last_layer(_require_shared(bank))
    counts = torch.zeros(size, dtype=torch.int32)
    others = [layer.pools[SCALING] for layer in bank.layers.values()]
    for name, head in bank.heads.items():
        if name == last:
            counts = head.pools[WEIGHT].counts[:size].cpu()
        else:
            others += head.pools.values()
    for pool in others:
        counts = counts * (pool.counts[:size].cpu() == 0)
    return counts


def _leave_out(name: str, group: Orders) -> Orders:
    others = Orders()
    for order, names in group.items():
        members = [member for member in names if member != name]
        if members:
            others[order] = members
    return others


def _task_of(bank: AdapterBank, sources: Orders, labels: Labels) -> dict[str, Any]:
    """Return the task info of a tenant without examples: the first source's, without what was fitted to examples.

    Raises:
        InputError: if only some sources are multi-label.
    """
    names = list(chain.from_iterable(sources.values()))
    task_infos = [bank.version_of(name).task_info for name in names]
    kinds = {bool(task_info.get("thresholds")) for task_info in task_infos}
    if len(kinds) > 1:
        raise InputError("labels: some tenants with these labels are multi-label, and others are not")
    task = {**task_infos[0], "labels": None if labels is None else list(labels)}
    for key in FITTED:
        task.pop(key, None)
    if kinds == {True}:
        task["thresholds"] = [EVEN] * len(labels or ())
    return task


def _mean_rows(
    bank: AdapterBank,
    layer: str,
    sources: Orders,
    labels: Labels,
) -> Mapping[str, Tensor]:
    """Return the mean of the sources' tensors of the head's last layer, with one row per label in this order."""
    head = bank.heads[layer]
    sums = dict[str, Tensor]()
    for order, names in sources.items():
        slots = torch.tensor([bank.slots[name] for name in names])
        places = _places_of(order, labels)
        for key, pool in head.pools.items():
            rows = _sum_rows(pool, slots, len(places))
            sums.setdefault(key, torch.zeros_like(rows))
            sums[key] += rows[places]
    count = sum(map(len, sources.values()))
    means = dict[str, Tensor]()
    for key, total in sums.items():
        mean = (total / count).float()
        shape = (len(mean), *head.like[key].shape[1:])
        means[f"{layer}.{key}"] = mean.reshape(shape)
    return means


def _places_of(order: Labels, labels: Labels) -> list[int]:
    """Return the row of each label in a head whose rows have this order."""
    if labels is None or order is None:
        return [0]
    places = {label: row for row, label in enumerate(order)}
    return [places[label] for label in labels]


def _sum_rows(
    pool: RowPool,
    slots: Tensor,
    count: int,
) -> Tensor:  # (slots,) -> (count, width), float64
    """Return the sum over slots of their runs of `count` rows, read in blocks, since there may be thousands."""
    total = torch.zeros(count, 1, dtype=torch.float64)
    for block in slots.split(max(1, BLOCK // count)):
        rows = pool.take(block.to(pool.counts.device), count)
        total = total + rows.double().sum(dim=0).cpu()
    return total


def describe_missing(labels: Sequence[str], groups: Iterable[frozenset[str]]) -> str:
    """Return the message that no tenant has these labels, with the existing sets of labels."""
    sets = list(groups)
    given = _quote(labels)
    for group in sets:
        if labels and group > {*labels}:
            return f"labels: {given}: only some of those of other tenants, {_join(group)}; name all of them"
    near = _find_similar(labels, sets)
    guess = f"; did you mean {_join(near)}?" if near else ""
    shown = "; ".join(map(_join, sets[:MAX_SHOWN]))
    more = len(sets) - MAX_SHOWN
    if more > 0:
        shown += f"; and {more} more"
    return f"labels: no tenant of the bank has {given}{guess}; there are: {shown}"


def _quote(labels: Sequence[str]) -> str:
    text = ", ".join(labels) or A_NUMBER
    return shortened(text)


def _join(group: frozenset[str]) -> str:
    return ", ".join(sorted(group)) or A_NUMBER


def _find_similar(labels: Sequence[str], sets: Sequence[frozenset[str]]) -> frozenset[str] | None:
    """Return a set of labels that differs in case only or, of the first sets, in spelling."""
    folded = frozenset(map(str.casefold, labels))
    for group in sets:
        if folded and folded == frozenset(map(str.casefold, group)):
            return group
    spelled = dict[str, frozenset[str]]()
    for group in sets[:MAX_COMPARED]:
        spelling = _join(group).casefold()
        spelled[spelling[:MAX_SPELLED]] = group
    given = ", ".join(sorted(folded))
    near = get_close_matches(given[:MAX_SPELLED], spelled, 1)
    return spelled[near[0]] if near else None
