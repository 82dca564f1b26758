"""A model chooses one of several texts: each is an example of its own, and the likeliest of a row is the answer."""

import numpy as np

from pipeline.params.labels import CHOSEN
from pipeline.tasks.classes import ClassesTask
from pipeline.tasks.outcome import Numbers, Outcome


class ChoicesTask(ClassesTask):
    """Texts to choose from, as examples that are right or wrong."""

    names = CHOSEN
    is_grouped = True

    def of_part(self, targets: Numbers, place: int) -> Numbers:
        return targets == place

    def predicted(self, outcome: Outcome) -> Numbers:
        assert outcome.groups is not None
        outputs = outcome.outputs.numpy()
        return (outputs[:, 1] - outputs[:, 0])[members(outcome.groups)].argmax(axis=1)

    def known(self, labels: Numbers, groups: Numbers | None) -> Numbers:
        assert groups is not None
        return labels[members(groups)].argmax(axis=1)

    def of_examples(self, outcome: Outcome) -> Numbers:
        assert outcome.groups is not None
        groups, predicted = members(outcome.groups), np.zeros(len(outcome.labels), np.int64)
        predicted[groups[np.arange(len(groups)), self.predicted(outcome)]] = 1
        return predicted


def members(
    groups: Numbers,  # (examples,)
) -> Numbers:  # (groups, choices)
    """Return the positions of the examples of each group; all groups have the same size."""
    order = np.argsort(groups, kind="stable")
    return order.reshape(len(np.unique(groups)), -1)
