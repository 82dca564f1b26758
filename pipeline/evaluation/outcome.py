"""The outcome of a model on a split, and its metrics."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from pipeline.evaluation import scores
from pipeline.evaluation.answers import Answers, answers, members
from pipeline.evaluation.intervals import intervals
from pipeline.params.dataset_row import DatasetRow


@dataclass(frozen=True)
class Outcome:
    """Logits, predictions and labels, in the order of the split."""

    examples: DatasetRow
    logits: Tensor  # (examples, labels)
    labels: Tensor  # (examples,)
    groups: NDArray[Any] | None  # (examples,): group numbers
    answers: Answers

    @classmethod
    def of(
        cls, logits: Tensor, labels: Sequence[float], examples: DatasetRow, groups: NDArray[Any] | None = None
    ) -> Self:
        """Return the outcome of logits."""
        known = torch.tensor(labels)
        return cls(examples, logits, known, groups, answers(logits.numpy(), known.numpy(), examples, groups))

    @cached_property
    def predicted(self) -> NDArray[Any]:  # (examples,)
        """Class indices, or the values of a regression; for choices, 1 for the chosen example of each group."""
        if self.groups is None or not self.examples.choices:
            return self.answers.predicted
        predicted = np.zeros(len(self.labels), np.int64)
        groups = members(self.groups)
        predicted[groups[np.arange(len(groups)), self.answers.predicted]] = 1
        return predicted

    @property
    def probabilities(self) -> Tensor:  # (examples, classes)
        """The model's probability for each class."""
        return self.logits.softmax(dim=1)

    def metrics(self, resamples: int) -> dict[str, float]:
        """Return the official metrics with 95 % intervals and baselines, and the loss.

        `score` is the first metric; `loss` is in nats per example, or the mean squared error of a regression. The
        baseline is the score of always predicting the most frequent class of the split, or its mean.
        """
        names, (predicted, labels, groups) = self.examples.metrics, self.answers
        found = scores.score(names, predicted, labels, groups)
        constant = scores.constant(labels, is_regression=self.examples.is_regression)
        metrics = {"score": found[names[0]], **found}
        metrics |= {f"{name}_baseline": value for name, value in scores.score(names, constant, labels, groups).items()}
        for name, (low, high) in intervals(names, predicted, labels, resamples, groups).items():
            metrics |= {f"{name}_low": low, f"{name}_high": high}
        everything = self.labels.numpy()
        if self.examples.is_regression:
            loss = float(F.mse_loss(self.logits[:, 0], self.labels.float()))
            return metrics | {"loss": loss, "loss_baseline": float(everything.var())}
        return metrics | {
            "loss": float(F.cross_entropy(self.logits, self.labels)),
            "loss_baseline": float(stats.entropy(np.bincount(everything))),
        }


def groups(values: Sequence[float], low: float, high: float, count: int) -> list[str]:
    """Return for each value the name of its bin among `count` equal bins of a range; the names sort in bin order."""
    edges = np.linspace(low, high, count + 1)
    positions = np.clip(np.digitize(values, edges) - 1, 0, count - 1)
    return [f"{position}: {edges[position]:g} to {edges[position + 1]:g}" for position in positions]
