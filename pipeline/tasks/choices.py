"""A model chooses one of several texts: each is an example of its own, and the likeliest of a row is the answer."""

import numpy as np
import pandas as pd

from pipeline.params.labels import CHOSEN, Classes
from pipeline.tasks import texts
from pipeline.tasks.classes import ClassesTask, classes
from pipeline.tasks.examples import hashes
from pipeline.tasks.task import Answers, Numbers, Outcome, folded


class ChoicesTask(ClassesTask):
    """Texts to choose from, as examples that are right or wrong."""

    names = CHOSEN
    is_grouped = True

    def targets(self, table: pd.DataFrame) -> pd.Series:
        """Return the number of the right choice.

        Raises:
            ValueError: for a value that names none.
        """
        label = self.row.label
        assert isinstance(label, Classes)
        return classes(table[label.column], label.names)

    def parts(self, table: pd.DataFrame, found: Numbers, numbers: Numbers) -> list[pd.DataFrame]:
        """Return a table for each choice, all of a row in one group: they are kept or dropped together.

        Raises:
            ValueError: as Task.parts.
        """
        made = texts.of(table, self.row)
        same = folded(made)  # each is identified by the texts of all
        keys = hashes(same)[:, 0]
        return [
            self.part(text, found == place, hashes(same + f"\n{place}"), keys, numbers)
            for place, text in enumerate(made)
        ]

    def predicted(self, outcome: Outcome) -> Numbers:
        """Return for each group the number of the choice that is most likely right."""
        assert outcome.groups is not None
        outputs = outcome.outputs.numpy()
        return (outputs[:, 1] - outputs[:, 0])[members(outcome.groups)].argmax(axis=1)

    def known(self, labels: Numbers, groups: Numbers | None) -> Numbers:
        """Return for each group the number of the right choice."""
        assert groups is not None
        return labels[members(groups)].argmax(axis=1)

    def answers(self, outcome: Outcome) -> Answers:
        """Return one answer for each group."""
        return super().answers(outcome)._replace(groups=None)

    def of_examples(self, outcome: Outcome) -> Numbers:
        """Return 1 for the chosen example of each group."""
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
