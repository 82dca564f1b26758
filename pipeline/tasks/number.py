"""A model predicts a number: regression."""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.tasks.cells import Cells, rounded
from pipeline.tasks.task import Columns, Numbers, Outcome, Task

if TYPE_CHECKING:
    from torch import Tensor

HIDDEN = -1  # GLUE's placeholder in the label column of a test split
IS_HIDDEN = "the label is -1: the labels of this split are hidden; choose another split"
BINS = 10  # equal parts of the scale, for the plot of actual against predicted


class NumberTask(Task):
    """A number on a scale."""

    kind = "number"
    target = "float64"
    names = ()

    def label_of(self, cells: Cells) -> Any:
        label, number = self.label, finite(cells[self.label.column])
        if not label.low <= number <= label.high:
            scale = f"the row's range, {label.low:g} to {label.high:g}"
            raise ValueError(IS_HIDDEN if number == HIDDEN else f"label {number:g} is not in {scale}")
        return number

    def counts(self, labels: Numbers) -> dict[str, float]:
        return {"label_mean": float(labels.mean()), "label_std": float(labels.std())}

    def head(self) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def predicted(self, outcome: Outcome) -> Numbers:
        return outcome.outputs.numpy()[:, 0]

    def constants(self, labels: Numbers) -> Iterable[Any]:
        """Return the mean: a correlation with any constant is 0."""
        return [labels.mean()]

    def losses(self, outcome: Outcome) -> tuple[float, float]:
        import torch

        loss = torch.nn.functional.mse_loss(outcome.outputs[:, 0], torch.from_numpy(outcome.labels).float())
        return float(loss), float(outcome.labels.var())

    def table(self, outcome: Outcome) -> Columns:
        predicted = [rounded(value, 3) for value in self.predicted(outcome).tolist()]
        both = {"actual": outcome.labels.tolist(), "predicted": predicted}
        edges = np.linspace(self.label.low, self.label.high, BINS + 1)
        bins = [f"{at}: {low:g} to {high:g}" for at, (low, high) in enumerate(pairwise(edges))]  # names sort as bins
        places = {name: np.clip(np.digitize(both[name], edges) - 1, 0, BINS - 1) for name in both}
        return both | {f"{name}_group": [bins[at] for at in places[name]] for name in both}

    @classmethod
    def printed(cls, outputs: "Tensor", labels: Sequence[str] | None, thresholds: Sequence[float] = ()) -> Columns:
        return {"number": [rounded(value, 6) for value in outputs[:, 0].tolist()]}

    def says(self) -> str:
        return f"a number from {self.label.low:g} to {self.label.high:g}"


def finite(value: Any) -> float:
    """Return a value as a number.

    Raises:
        ValueError: if it is none, or not a finite one.
    """
    try:
        if math.isfinite(number := float(value)):
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"label {value!r} is not a finite number")
