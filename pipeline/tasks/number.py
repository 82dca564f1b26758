"""Regression: a model predicts a number."""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline.tasks.cells import Cells, round_significant
from pipeline.tasks.description import Description
from pipeline.tasks.facts import Facts, LabelScale
from pipeline.tasks.head import Head
from pipeline.tasks.preprocessing import Preprocessor
from pipeline.tasks.scoring import Scoring
from pipeline.tasks.task import Columns, Numbers, Outcome, Scores

if TYPE_CHECKING:
    from torch import Tensor

HIDDEN = -1  # GLUE's placeholder in the label column of a test split
IS_HIDDEN = "the label is -1: the labels of this split are hidden; choose another split"
WRITTEN = 15  # digits in a table of numbers that are already rounded: all that decimals keep in float64
LARGE = 1000.0  # from here on, six digits lack the second one behind the point
BINS = 10  # equal parts of the scale, for the plot of actual against predicted


class RegressionPreprocessor(Preprocessor):
    """A label that is a number on a scale."""

    target = "float64"

    def label_of(self, cells: Cells) -> Any:
        return number_in(cells, self.label)

    def facts_of_examples(self, train: pd.DataFrame) -> Facts:
        """Find the scale of the numbers."""
        return self.facts.with_label_scale(train["label"].to_numpy())


class RegressionHead(Head):
    """A head with one output, the number."""

    def fields(self) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def loss(self) -> "Callable[..., Tensor] | None":
        scale = self.facts.label_scale
        if scale is None:
            return None

        def loss(logits: "Tensor", labels: "Tensor") -> "Tensor":
            return compute_squared_errors(logits, labels, scale).mean()

        return loss


class RegressionScoring(Scoring):
    """Scores the predicted numbers."""

    def predict(self, outcome: Outcome) -> Numbers:
        return outcome.outputs.numpy()[:, 0]

    def constants(self, labels: Numbers) -> Iterable[Any]:
        """Return the mean as the only constant: a correlation with any constant is 0."""
        return [labels.mean()]

    def losses(self, outcome: Outcome) -> tuple[float, float]:
        import torch

        wanted = torch.from_numpy(outcome.labels).float()
        loss = torch.nn.functional.mse_loss(outcome.outputs[:, 0], wanted)
        return float(loss), float(outcome.labels.var())

    def table(self, outcome: Outcome) -> Columns:
        actual = outcome.labels.tolist()
        predicted = [round_on_scale(value, self.label) for value in self.predict(outcome).tolist()]
        return {
            "actual": [f"{value:.{WRITTEN}g}" for value in actual],
            "predicted": [f"{value:.{WRITTEN}g}" for value in predicted],
            "actual_group": bins_of(actual, self.label),
            "predicted_group": bins_of(predicted, self.label),
        }


class RegressionDescription(Description):
    """Describes a number and the ends of its scale."""

    @classmethod
    def to_columns(cls, outputs: Numbers, labels: Sequence[str] | None, thresholds: Sequence[float] = ()) -> Columns:
        return {"number": list(map(round_answer, outputs[:, 0].tolist()))}

    @property
    def unit(self) -> str:
        return self.label.column

    def predicts(self) -> str:
        return f"a number from {self.label.low:g} to {self.label.high:g}"

    def counts(self, labels: Numbers) -> Scores:
        return {"label_mean": float(labels.mean()), "label_std": float(labels.std())}


def compute_squared_errors(logits: "Tensor", labels: "Tensor", scale: LabelScale | None) -> "Tensor":
    """Return the squared error of each example, (examples,), given logits (examples, 1 or more).

    With a scale, it is in units of the variance of the labels: 1 on average for a prediction of their mean.
    """
    import torch

    precise = torch.promote_types(logits.dtype, torch.float32)  # bfloat16 would round the labels to 8 bits
    errors = logits[:, 0] - labels.to(logits.device, precise)
    if scale is not None:
        errors = errors / scale.deviation
    return errors.square()


def number_in(cells: Cells, label: Any) -> float:
    """Return the number in the cells of a row.

    Raises:
        ValueError: if it is not a number, is not on the scale, or stands for a hidden label.
    """
    number = finite(cells[label.column])
    if label.low <= number <= label.high:
        return number
    if number == HIDDEN:
        raise ValueError(IS_HIDDEN)
    raise ValueError(f"label {number:g} is not in the entry's range, {label.low:g} to {label.high:g}")


def round_on_scale(value: float, label: Any) -> float:
    """Round a number to four digits of the length of the scale: 2015.375 to 2015.38 on one from 1950 to 2025."""
    whole_digits = math.ceil(math.log10(label.high - label.low))
    return round(value, 4 - whole_digits)


def round_answer(value: float) -> float:
    """Round a number whose scale is not known to six digits, but keep hundredths of a large one."""
    rounded = round_significant(value, 6)
    return rounded if abs(value) < LARGE else round(value, 2)


def bins_of(values: Sequence[float], label: Any) -> list[str]:
    """Return the name of the part of the scale nearest to each value; names sort like the parts."""
    edges = np.linspace(label.low, label.high, BINS + 1)
    names = list[str]()
    for low, high in pairwise(edges):
        names.append(f"{len(names)}: {low:g} to {high:g}")
    places = np.digitize(values, edges) - 1
    return [names[place] for place in places.clip(0, BINS - 1)]


def finite(value: Any) -> float:
    """Convert a value to a finite number.

    Raises:
        ValueError: if it is not a finite number.
    """
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"label {value!r} is not a finite number")
    return number
