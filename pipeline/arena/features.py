"""No adapter at all: what scikit-learn makes of features of the encoder as it is, or of words, for all or each tenant.

That is a logistic regression, the strength of whose penalty is chosen on the validation split, or the nearest of the
classes' means. There is no training loop, and nothing depends on a seed.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from pipeline import evaluation, tasks
from pipeline.arena.plan import Training
from pipeline.core.errors import UserError
from pipeline.data import base_models
from pipeline.methods.batches import tokenizer_of
from pipeline.methods.device import fastest
from pipeline.params import PARAMS
from pipeline.tasks import Outcome, Task

STRENGTHS = tuple(10.0**power for power in range(-5, 2))  # of fitting train: the inverse of the penalty's
OF_WORDS = tuple(10.0**power for power in range(-1, 5))  # where a text has a few features that are not 0
STEPS = 1000  # of the solver, at most
Values = NDArray[Any]


def check(training: Training) -> None:
    """Refuse a task without classes.

    Raises:
        UserError: if it is one.
    """
    if not tasks.of(training.view.dataset).has_one_class_each:
        raise UserError(f"{PARAMS}: features: they need a task with classes, which {training.task} is not")


def outcomes(
    training: Training, task: Task, splits: Mapping[str, Dataset], at_once: int
) -> tuple[dict[str, Outcome], int]:
    """Return what regressions say of validation and test, log-probabilities, and the number of their parameters."""
    view = training.view
    base = base_models.load_base_model(view.base_model, task)
    collate = task.collator(tokenizer_of(base, view.base_model))
    model = Pooled(base.base_model, training.chosen.features).to(fastest())
    read = {
        split: evaluation.outcome(evaluation.outputs(task, model, rows, collate, at_once), rows)
        for split, rows in splits.items()
    }
    width = 1 + max(int(one.labels.max()) for one in read.values())
    least = torch.finfo(torch.float32).min
    said = {split: torch.full((len(one.labels), width), least) for split, one in read.items()}
    count = 0
    has_tenants = bool(task.facts.tenants)
    whose = {split: np.asarray(one.groups if has_tenants else 0 * one.labels) for split, one in read.items()}
    for tenant in np.unique(whose["train"]):  # each has its own regression
        rows = {split: np.flatnonzero(numbers == tenant) for split, numbers in whose.items()}
        its = {split: (read[split].outputs[at].numpy(), read[split].labels[at]) for split, at in rows.items()}
        fitted = _fitted(training.chosen.features, *its["train"], *its["validation"])
        learned = [getattr(fitted[-1], name, np.zeros(0)) for name in ("coef_", "intercept_", "centroids_")]
        count += sum(map(np.count_nonzero, learned))
        for split, at in rows.items():
            said[split][np.ix_(at, fitted.classes_)] = torch.from_numpy(_logs(fitted, its[split][0])).float()
    return {split: replace(read[split], outputs=said[split]) for split in ("validation", "test")}, count


def _fitted(features: str | None, x: Values, y: Values, held_out: Values, wanted: Values) -> Pipeline:
    """Return what has the least loss on held-out texts, of those with the same the first."""

    def loss(fitted: Pipeline) -> float:
        places = np.searchsorted(fitted.classes_, wanted)
        return float(-_logs(fitted, held_out)[np.arange(len(wanted)), places].mean())

    if features == "nearest":
        return make_pipeline(NearestCentroid()).fit(x, y)
    scaler, strengths = (TfidfTransformer(), OF_WORDS) if features == "words" else (StandardScaler(), STRENGTHS)
    made = [make_pipeline(scaler, LogisticRegression(C=c, max_iter=STEPS)).fit(x, y) for c in strengths]
    return min(made, key=loss)


def _logs(fitted: Pipeline, x: Values) -> Values:
    return np.log(fitted.predict_proba(x).clip(min=np.finfo(np.float32).tiny))


class Pooled(nn.Module):
    """An encoder whose `logits` are features of a text: the mean of its last states over tokens, or that of the first.

    For "words" they are how often each token of the vocabulary occurs, and the encoder only says how many there are.
    """

    def __init__(self, encoder: Any, features: str | None) -> None:
        super().__init__()
        self.encoder, self.features = encoder, features

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, tenant: Tensor | None = None, **inputs: Tensor
    ) -> SimpleNamespace:
        """Return the features of each text, (n, width)."""
        if self.features == "words":
            none = torch.zeros(len(input_ids), self.encoder.config.vocab_size)
            return SimpleNamespace(logits=none.scatter_add(1, input_ids, attention_mask.float()))
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **inputs).last_hidden_state
        if self.features == "first":
            first = attention_mask.argmax(dim=1)  # not 0 where padding comes before the text
            return SimpleNamespace(logits=states[torch.arange(len(states), device=states.device), first])
        shares = attention_mask / attention_mask.sum(dim=1, keepdim=True)
        return SimpleNamespace(logits=(shares[:, :, None] * states).sum(dim=1))
