"""What logits answer: for each example a class or a number, or for each group which of its examples is chosen."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation import inference
from pipeline.params.rows import Examples

Numbers = NDArray[Any]


class Answers(NamedTuple):
    """What is scored, in the order of the examples, or in that of the numbers of groups."""

    predicted: Numbers
    labels: Numbers
    groups: Numbers | None  # of the examples, where they are scored together


def answers(
    logits: Numbers,  # (examples, labels)
    labels: Numbers,  # (examples,)
    row: Examples,
    groups: Numbers | None,  # (examples,)
) -> Answers:
    """Return what the metrics of a row are for."""
    if not row.choices:
        return Answers(inference.predicted(logits, row), labels, groups)
    assert groups is not None  # each choice has the number of its row
    return Answers(chosen(logits, groups), labels[members(groups)].argmax(axis=1), None)


def chosen(
    logits: Numbers,  # (examples, 2)
    groups: Numbers,  # (examples,)
) -> Numbers:  # (groups,)
    """Return which example of each group is the likeliest to be right, in the order of its choices."""
    return (logits[:, 1] - logits[:, 0])[members(groups)].argmax(axis=1)


def members(
    groups: Numbers,  # (examples,)
) -> Numbers:  # (groups, choices)
    """Return the positions of the examples of each group; all have as many."""
    order = np.argsort(groups, kind="stable")
    return order.reshape(len(np.unique(groups)), -1)
