"""What a model said of a split, and the metrics of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.evaluation import inference, scores
from pipeline.params.rows import DatasetRow


@dataclass(frozen=True)
class Outcome:
    """Logits, what they predict and what is right, in the order of the split."""

    dataset: DatasetRow
    logits: Tensor  # (examples, labels)
    labels: Tensor  # (examples,)
    predicted: NDArray[Any]  # (examples,): class numbers, or the numbers of a regression

    @classmethod
    def of(cls, logits: Tensor, labels: Sequence[float], dataset: DatasetRow) -> Self:
        """Return the outcome of logits."""
        return cls(dataset, logits, torch.tensor(labels), inference.predicted(logits.numpy(), dataset))

    @property
    def probabilities(self) -> Tensor:  # (examples, classes)
        """What the model gives each class."""
        return self.logits.softmax(dim=1)

    def metrics(self, resamples: int) -> dict[str, float]:
        """Return the official metrics with 95 % intervals, the loss and the calibration error.

        `score` is the first metric; `loss` is in nats per example, or the mean squared error of a regression.
        """
        names, labels = self.dataset.metrics, self.labels.numpy()
        found = scores.score(names, self.predicted, labels)
        metrics = {"score": found[names[0]], **found}
        for name, (low, high) in scores.intervals(names, self.predicted, labels, resamples).items():
            metrics |= {f"{name}_low": low, f"{name}_high": high}
        if self.dataset.is_regression:
            return metrics | {"loss": float(F.mse_loss(self.logits[:, 0], self.labels.float()))}
        return metrics | {
            "loss": float(F.cross_entropy(self.logits, self.labels)),
            "calibration_error": scores.calibration_error(self.probabilities.numpy(), labels),
        }


def groups(values: Sequence[float], low: float, high: float, count: int) -> list[str]:
    """Return for each value the one of `count` equal parts of a range that it is in; the names sort as the parts."""
    edges = np.linspace(low, high, count + 1)
    positions = np.clip(np.digitize(values, edges) - 1, 0, count - 1)
    return [f"{position}: {edges[position]:g} to {edges[position + 1]:g}" for position in positions]
