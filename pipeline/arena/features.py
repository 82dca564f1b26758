"""No adapter at all: a logistic regression on features of the encoder as it is, for all texts or for each tenant's.

The strength of its penalty is chosen on the validation split. There is no training loop, and nothing depends on a seed.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from pipeline import evaluation, tasks
from pipeline.arena.plan import Training
from pipeline.core.errors import UserError
from pipeline.data import base_models
from pipeline.methods import device
from pipeline.params import PARAMS
from pipeline.tasks import Outcome, TenantsTask
from pipeline.tasks.choices import ChoicesTask
from pipeline.tasks.classes import ClassesTask

STRENGTHS = tuple(10.0**power for power in range(-5, 2))  # of fitting train: the inverse of the penalty's
STEPS = 1000  # of the solver, at most
Values = NDArray[Any]


def check(training: Training) -> None:
    """Refuse a task without classes.

    Raises:
        UserError: if it is one.
    """
    task = tasks.of(training.view.dataset)
    has_classes = isinstance(task, ClassesTask) and not isinstance(task, ChoicesTask)
    if not (has_classes or (isinstance(task, TenantsTask) and not task.is_number)):
        raise UserError(
            f"{PARAMS}: features: a logistic regression needs a task with classes, which {training.task} is not"
        )


def outcomes(
    training: Training, splits: Mapping[str, Dataset], collate: Any, at_once: int
) -> tuple[dict[str, Outcome], int]:
    """Return what regressions say of validation and test, log-probabilities, and the number of their parameters.

    Raises:
        UserError: if the task has no classes.
    """
    check(training)
    view, task = training.view, tasks.of(training.view.dataset)
    base = base_models.load_base_model(view.base_model, view.dataset)
    model = device.place(Pooled(base.base_model, training.features == "mean"))
    read = {
        split: evaluation.outcome(evaluation.outputs(task, model, rows, collate, at_once), rows)
        for split, rows in splits.items()
    }
    width = 1 + max(int(one.labels.max()) for one in read.values())
    least = torch.finfo(torch.float32).min
    said = {split: torch.full((len(one.labels), width), least) for split, one in read.items()}
    count = 0
    for rows in _parts(read, by_tenant=isinstance(task, TenantsTask)):
        its = {split: (read[split].outputs[at].numpy(), read[split].labels[at]) for split, at in rows.items()}
        fitted = _fitted(*its["train"], *its["validation"])
        count += sum(values.size for values in (fitted[-1].coef_, fitted[-1].intercept_))
        for split, at in rows.items():
            logs = torch.from_numpy(fitted.predict_log_proba(its[split][0])).float()
            said[split][np.ix_(at, fitted.classes_)] = logs.clamp(min=least)
    return {split: replace(read[split], outputs=said[split]) for split in ("validation", "test")}, count


def _parts(read: Mapping[str, Outcome], *, by_tenant: bool) -> Iterator[dict[str, Values]]:
    """Yield the positions in each split that a regression is for: all, or those of a tenant."""
    whose = {split: np.asarray(one.groups if by_tenant else 0 * one.labels) for split, one in read.items()}
    for tenant in np.unique(whose["train"]):
        yield {split: np.flatnonzero(numbers == tenant) for split, numbers in whose.items()}


def _fitted(x: Values, y: Values, held_out: Values, wanted: Values) -> Pipeline:
    """Return the regression with the least loss on held-out texts, of those with the same the first."""

    def loss(fitted: Pipeline) -> float:
        places = np.searchsorted(fitted.classes_, wanted)
        return float(-fitted.predict_log_proba(held_out)[np.arange(len(wanted)), places].mean())

    made = [make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=STEPS)).fit(x, y) for c in STRENGTHS]
    return min(made, key=loss)


class Pooled(nn.Module):
    """An encoder whose `logits` are the mean of its last states over the tokens of a text, or that of the first."""

    def __init__(self, encoder: Callable[..., Any], is_mean: bool) -> None:
        super().__init__()
        self.encoder, self.is_mean = encoder, is_mean

    def forward(self, attention_mask: Tensor, tenant: Tensor | None = None, **inputs: Tensor) -> SimpleNamespace:
        """Return the features of each text, (n, width)."""
        states = self.encoder(attention_mask=attention_mask, **inputs).last_hidden_state
        if not self.is_mean:
            return SimpleNamespace(logits=states[:, 0])
        shares = attention_mask / attention_mask.sum(dim=1, keepdim=True)
        return SimpleNamespace(logits=(shares[:, :, None] * states).sum(dim=1))
