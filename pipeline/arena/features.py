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
    read = dict[str, Outcome]()  # the features
    tenants = dict[str, Values]()  # the number of each example's; without tenants, all are of number 0
    for split, examples in splits.items():
        read[split] = evaluation.outcome(evaluation.outputs(task, model, examples, collate, at_once), examples)
        groups = read[split].groups if task.facts.tenants else np.zeros(len(examples))
        tenants[split] = np.asarray(groups)
    width = 1 + max(int(outcome.labels.max()) for outcome in read.values())
    least = torch.finfo(torch.float32).min
    logs = {split: torch.full((len(read[split].labels), width), least) for split in ("validation", "test")}
    count = 0
    for tenant in np.unique(tenants["train"]):  # each has its own regression
        own = {split: _of_rows(read[split], tenants[split] == tenant) for split in splits}
        fitted = _fitted(training.chosen.features, *own["train"], *own["validation"])
        count += _count(fitted)
        for split, outputs in logs.items():
            rows = np.flatnonzero(tenants[split] == tenant)
            features, _ = own[split]
            outputs[np.ix_(rows, fitted.classes_)] = torch.from_numpy(_logs(fitted, features)).float()
    return {split: replace(read[split], outputs=outputs) for split, outputs in logs.items()}, count


def _of_rows(outcome: Outcome, rows: Values) -> tuple[Values, Values]:
    """Return the features and labels of some examples."""
    return outcome.outputs[rows].numpy(), outcome.labels[rows]


def _count(fitted: Pipeline) -> int:
    """Return the number of parameters that are not 0."""
    learned = [getattr(fitted[-1], name, 0) for name in ("coef_", "intercept_", "centroids_")]
    return sum(map(np.count_nonzero, learned))


def _fitted(features: str | None, x: Values, y: Values, held_out: Values, wanted: Values) -> Pipeline:
    """Return what has the least loss on held-out texts, of those with the same the first."""

    def loss(fitted: Pipeline) -> float:
        places = np.searchsorted(fitted.classes_, wanted)
        return float(-_logs(fitted, held_out)[np.arange(len(wanted)), places].mean())

    if features == "nearest":
        return make_pipeline(NearestCentroid()).fit(x, y)
    if features == "words":
        scaler = TfidfTransformer()
        strengths = OF_WORDS
    else:
        scaler = StandardScaler()
        strengths = STRENGTHS
    candidates = []
    for strength in strengths:
        regression = LogisticRegression(C=strength, max_iter=STEPS)
        candidates.append(make_pipeline(scaler, regression).fit(x, y))
    return min(candidates, key=loss)


def _logs(fitted: Pipeline, x: Values) -> Values:
    return np.log(fitted.predict_proba(x).clip(min=np.finfo(np.float32).tiny))


class Pooled(nn.Module):
    """An encoder whose `logits` are features of a text: the mean of its last states over tokens, or that of the first.

    For "words" they are how often each token of the vocabulary occurs, and the encoder only says how many there are.
    """

    def __init__(self, encoder: Any, features: str | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.features = features

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, tenant: Tensor | None = None, **inputs: Tensor
    ) -> SimpleNamespace:
        """Return the features of each text, (n, width)."""
        if self.features == "words":
            none = torch.zeros(len(input_ids), self.encoder.config.vocab_size)
            return SimpleNamespace(logits=none.scatter_add(1, input_ids, attention_mask.float()))
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **inputs).last_hidden_state
        if self.features == "first":
            texts = torch.arange(len(states), device=states.device)
            first = attention_mask.argmax(dim=1)  # not 0 where padding comes before the text
            return SimpleNamespace(logits=states[texts, first])
        shares = attention_mask / attention_mask.sum(dim=1, keepdim=True)
        return SimpleNamespace(logits=(shares[:, :, None] * states).sum(dim=1))
