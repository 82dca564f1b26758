"""Baselines without an adapter: scikit-learn classifiers on frozen-encoder embeddings or TF-IDF, overall or per tenant.

The classifier is a logistic regression, whose penalty is chosen on the validation split, or the nearest class mean.
There is no training loop, and nothing depends on a seed.
"""

from collections.abc import Mapping

import numpy as np
import torch
from datasets import Dataset
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline import tasks
from pipeline.arena.plan import Training
from pipeline.core.errors import UserError
from pipeline.data import base_models
from pipeline.methods.batches import tokenizer_of
from pipeline.methods.device import fastest
from pipeline.params import PARAMS
from pipeline.regression import STEPS, STRENGTHS, XY, Part, Pooled, Values, read_parts
from pipeline.tasks import Outcome, Task

OF_WORDS = [0.1, 1.0, 10.0, 100.0, 1e3, 1e4]  # where a text has a few features that are not 0
SCORED = ("validation", "test")
LEARNED = ("coef_", "intercept_", "centroids_")  # attributes of scikit-learn's classifiers


def check(training: Training) -> None:
    """Reject a task without classes.

    Raises:
        UserError: if it has none.
    """
    if not tasks.of(training.view.dataset).scoring.has_one_class_each:
        raise UserError(f"{PARAMS}: features: they need a task with classes, which {training.task} is not")


def outcomes(
    training: Training,
    task: Task,
    splits: Mapping[str, Dataset],
    at_once: int,
) -> tuple[dict[str, Outcome], int]:
    """Return the log-probabilities of regressions for validation and test, and the number of their parameters."""
    parts = _read(training, task, splits, at_once)
    largest = max(part.labels.max() for part in parts.values())
    width = 1 + int(largest)
    least = torch.finfo(torch.float32).min
    logs = {}
    for split in SCORED:
        count = len(parts[split].labels)
        logs[split] = torch.full((count, width), least)
    parameters = 0
    train = parts["train"]
    for tenant in train.rows:  # each has its own regression
        fitted = _fit(training.chosen.features, train.of(tenant), parts["validation"].of(tenant))
        parameters += _count(fitted)
        for split in SCORED:
            rows = parts[split].rows_of(tenant)
            features, _ = parts[split].of(tenant)
            known = torch.from_numpy(_logs(fitted, features))
            logs[split][np.ix_(rows, fitted.classes_)] = known.float()
    scored = dict[str, Outcome]()
    for split, outputs in logs.items():
        scored[split] = Outcome(outputs, parts[split].labels, parts[split].groups)
    return scored, parameters


def _read(
    training: Training,
    task: Task,
    splits: Mapping[str, Dataset],
    at_once: int,
) -> dict[str, Part]:
    """Return the features of all examples by split."""
    row = training.view.base_model
    base = base_models.load_base_model(row, task)
    collate = task.head.collator(tokenizer_of(base, row))
    model = Pooled(base.base_model, training.chosen.features).to(fastest())
    return read_parts(task, model, splits, collate, at_once)


def _count(fitted: Pipeline) -> int:
    """Return the number of parameters that are not 0."""
    last = fitted[-1]
    learned = [getattr(last, name, 0) for name in LEARNED]
    return sum(map(np.count_nonzero, learned))


def _fit(features: str | None, train: XY, validation: XY) -> Pipeline:
    """Fit the regression with the lowest validation loss (the first of ties), or the nearest class mean."""
    if features == "nearest":
        return make_pipeline(NearestCentroid()).fit(*train)
    scaler = StandardScaler()
    strengths = STRENGTHS
    if features == "words":
        scaler = TfidfTransformer()
        strengths = OF_WORDS
    held_out, wanted = validation

    def loss(fitted: Pipeline) -> float:
        logs = _logs(fitted, held_out)
        places = np.searchsorted(fitted.classes_, wanted)
        of_wanted = logs[np.arange(len(wanted)), places]
        return float(-of_wanted.mean())

    candidates = []
    for strength in strengths:
        regression = LogisticRegression(C=strength, max_iter=STEPS)
        candidates.append(make_pipeline(scaler, regression).fit(*train))
    return min(candidates, key=loss)


def _logs(fitted: Pipeline, x: Values) -> Values:
    least = np.finfo(np.float32).tiny
    return np.log(fitted.predict_proba(x).clip(min=least))
