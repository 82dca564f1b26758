"""Answers from logits: a class or a number for each example, or the chosen example of each group."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.params.dataset_row import DatasetRow

Numbers = NDArray[Any]


class Answers(NamedTuple):
    """What is scored, in the order of the examples or, for choices, of the group numbers."""

    predicted: Numbers
    labels: Numbers
    groups: Numbers | None  # of the examples, if they are scored in groups


def answers(
    logits: Numbers,  # (examples, labels)
    labels: Numbers,  # (examples,)
    row: DatasetRow,
    groups: Numbers | None,  # (examples,)
) -> Answers:
    """Return what the metrics of a row score."""
    if not row.choices:
        return Answers(logits[:, 0] if row.is_regression else logits.argmax(axis=1), labels, groups)
    assert groups is not None  # each choice has the number of its row
    return Answers(chosen(logits, groups), labels[members(groups)].argmax(axis=1), None)


def chosen(
    logits: Numbers,  # (examples, 2)
    groups: Numbers,  # (examples,)
) -> Numbers:  # (groups,)
    """Return for each group the index of the choice that is most likely right."""
    return (logits[:, 1] - logits[:, 0])[members(groups)].argmax(axis=1)


def members(
    groups: Numbers,  # (examples,)
) -> Numbers:  # (groups, choices)
    """Return the positions of the examples of each group; all groups have the same size."""
    order = np.argsort(groups, kind="stable")
    return order.reshape(len(np.unique(groups)), -1)
