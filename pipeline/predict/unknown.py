"""Answer for tenants that a bank does not have by their group: the tenants with the same labels."""

from collections.abc import Mapping
from typing import NamedTuple

from lsr_onnx.answers import Labels
from pipeline.core.errors import UserError, as_user_error
from pipeline.methods.adapter_task import AdapterTask

OPTION = "--labels"
HELP = (
    "labels of tenants that the bank does not have, separated by commas, or an empty text if they predict a number: "
    "such tenants are answered by the mean of those with the same labels (default: only tenants of the bank)"
)
EVEN = 0.5  # threshold of each label of a multi-label task


class Group(NamedTuple):
    """A group of tenants that answers for tenants that the bank does not have."""

    name: str  # the name in the bank and in a table; no tenant has it
    labels: Labels
    task: AdapterTask


def find_group(text: str, tenant: str | None, tenants: Mapping[str, AdapterTask]) -> Group:
    """Return the group of the tenants with the labels in the option; `tenant` is the one to predict for, if any.

    Raises:
        UserError: if there are no tenants, one of them is the one to predict for, or none has these labels.
    """
    from lsr.serve.groups import describe_missing  # it imports torch, which takes seconds
    from lsr.serve.labeled import split_labels

    if not tenants:
        raise UserError(f"{OPTION}: needs --adapter with a bank of tenants")
    if tenant in tenants:
        raise UserError(f"{OPTION}: has no effect: {tenant} is a tenant of the bank")
    with as_user_error(ValueError):
        labels = split_labels(text, OPTION) if text else None
    for task in tenants.values():
        if frozenset(task.labels or ()) == frozenset(labels or ()):
            return Group(_choose_name(tenant, tenants), labels, _task_of(task, labels))
    sets = {frozenset(task.labels or ()) for task in tenants.values()}
    raise UserError(describe_missing(labels or (), sorted(sets, key=sorted)))


def _choose_name(tenant: str | None, tenants: Mapping[str, AdapterTask]) -> str:
    name = tenant or "unknown"
    while name in tenants:
        name += "_"
    return name


def _task_of(member: AdapterTask, labels: Labels) -> AdapterTask:
    """Return the task of a group: that of a member, without what was fitted to its examples."""
    thresholds = None if member.thresholds is None else (EVEN,) * len(labels or ())
    fields = {"labels": labels, "thresholds": thresholds, "threshold": None, "temperatures": None}
    return member.model_copy(update=fields)
