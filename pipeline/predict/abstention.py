"""Abstention: leave out answers in which no label reaches the required probability."""

from collections.abc import Sequence

import numpy as np

from pipeline.core import console
from pipeline.core.console import Parser, probability
from pipeline.core.errors import UserError
from pipeline.methods.adapter_task import AdapterTask
from pipeline.tasks.task import Columns

OPTION = "--min-probability"
LABEL = "label"
TENANTS = "p"  # the column of the probabilities of tenants' answers


def add_option(parser: Parser) -> None:
    """Add the option with the probability to the command line of predict."""
    least = "answer only with a label of at least this probability, and count the others (default: answer all)"
    parser.add_argument(OPTION, type=probability, metavar="P", help=least)


class Abstention:
    """Leaves out answers below a probability, and counts them; without a probability, none.

    Raises:
        UserError: if an answer of the task is not a single label with a probability.
    """

    def __init__(self, least: float | None, task: AdapterTask) -> None:
        self.least = least
        self.answered = 0
        self.left_out = 0
        is_single = task.task.head.has_probabilities and not task.task.scoring.has_thresholds
        if least is not None and not is_single:
            raise UserError(f"{OPTION}: needs an adapter that answers with one label, got one of the kind {task.kind}")

    def apply(self, answers: Columns) -> Columns:
        """Return the columns of answers, with an empty label where its probability, as it is printed, is lower."""
        if self.least is None:
            return answers
        is_answered = np.array(_find_probabilities(answers)) >= self.least
        pairs = zip(answers[LABEL], is_answered, strict=True)
        self.answered += int(is_answered.sum())
        self.left_out += int((~is_answered).sum())
        return {**answers, LABEL: [label if is_kept else "" for label, is_kept in pairs]}

    def print_note(self) -> None:
        """Print how many texts have no answer, if some have none."""
        if self.left_out:
            total = self.answered + self.left_out
            reason = f"its probability is below {self.least:g}"
            console.note(f"{self.left_out} of {total} texts without an answer: {reason}")


def _find_probabilities(answers: Columns) -> Sequence[float]:
    """Return the probability of each answer, as it is printed: of tenants in a column of its own."""
    if TENANTS in answers:
        return answers[TENANTS]
    probabilities = list[float]()
    for number, label in enumerate(answers[LABEL]):
        probabilities.append(answers[f"p({label})"][number])
    return probabilities
