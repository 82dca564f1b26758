"""Groups of tenants, whose labels are the same set, in any order, or which all predict a number.

The rows of a head for a group are shared by its tenants, each of which may deviate from them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lsr_onnx.answers import Labels
from pipeline.tasks.facts import Facts, Tenant
from pipeline.tasks.head import Head
from pipeline.tasks.task import Numbers


class Group(NamedTuple):
    """A group of tenants, and where its tenants' outputs are in the head."""

    labels: Labels  # labels in the order of the first tenant; None for a number
    tenants: Numbers  # (tenants,): numbers of the tenants
    outputs: Numbers  # (tenants, labels): the output of the head for each of the group's labels


def find_groups(facts: Facts) -> list[Group]:
    """Return the groups of at least two tenants, in the order of their first tenants."""
    members = dict[frozenset[str], list[int]]()
    tenants = list(facts.tenants.values())
    for number, tenant in enumerate(tenants):
        labels = frozenset(tenant.labels or ())
        same = members.setdefault(labels, [])
        same.append(number)
    widths = np.array([Head.width(tenant.labels) for tenant in tenants])
    first = widths.cumsum() - widths
    groups = list[Group]()
    for numbers in members.values():
        if len(numbers) > 1:
            groups.append(_make_group(tenants, numbers, first))
    return groups


def find_similar(facts: Facts) -> list[tuple[str, str]]:
    """Return pairs of tenants whose labels differ in case alone, so that they are in different groups.

    Each set of labels is in one pair at most, by its first tenant.
    """
    seen = set[frozenset[str]]()
    firsts = dict[frozenset[str], str]()
    pairs = list[tuple[str, str]]()
    for name, tenant in facts.tenants.items():
        labels = frozenset(tenant.labels or ())
        if labels in seen:
            continue
        seen.add(labels)
        folded = frozenset(map(str.casefold, labels))
        first = firsts.setdefault(folded, name)
        if first != name:
            pairs.append((first, name))
    return pairs


def _make_group(
    tenants: Sequence[Tenant],
    numbers: Sequence[int],
    first: Numbers,
) -> Group:
    """Return a group of tenants by number; `first` has the first output of each tenant in the head."""
    labels = tenants[numbers[0]].labels
    outputs = list[Numbers]()
    for number in numbers:
        places = _places_of(labels, tenants[number].labels)
        outputs.append(first[number] + places)
    members = np.array(numbers)
    return Group(labels, members, np.stack(outputs))


def _places_of(labels: Sequence[str] | None, own: Sequence[str] | None) -> Numbers:
    """Return the place of each label among a tenant's own labels."""
    if labels is None or own is None:
        return np.zeros(1, np.int64)
    places = [own.index(label) for label in labels]
    return np.array(places)
