"""Baselines without an adapter: scikit-learn classifiers on frozen-encoder embeddings or TF-IDF, overall or per tenant.

The classifier is a logistic regression, whose penalty is chosen on the validation split, or the nearest class mean,
each feature divided by its deviation within classes. There is no training loop, and nothing depends on a seed.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from sklearn.base import clone
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from pipeline import tasks
from pipeline.arena import unseen
from pipeline.arena.plan import TrainingRun
from pipeline.core.errors import UserError
from pipeline.data import base_models
from pipeline.methods.batches import tokenizer_of
from pipeline.methods.device import fastest
from pipeline.params import PARAMS
from pipeline.regression import STEPS, STRENGTHS, USUAL, XY, Part, Pooled, Values, join_outputs, read_parts, width_of
from pipeline.tasks import Outcome, Task

OF_WORDS = [0.1, 1.0, 10.0, 100.0, 1e3, 1e4]  # strengths for TF-IDF, in which a text has a few features that are not 0
USUAL_OF_WORDS = 1.0  # strength for TF-IDF where no validation example could choose one
LEARNED = ("coef_", "intercept_", "centroids_", "within_class_std_dev_")  # attributes of scikit-learn's classifiers


def check(training: TrainingRun) -> None:
    """Reject a task without classes.

    Raises:
        UserError: if it has none.
    """
    if not tasks.of(training.view.dataset).scoring.has_one_class_each:
        raise UserError(f"{PARAMS}: features: they need a task with classes, which {training.task} is not")


class Measured(NamedTuple):
    """The results of regressions."""

    outcomes: dict[str, Outcome]  # log-probabilities for validation and test
    parameters: int
    unseen: unseen.Scores


def measure(
    training: TrainingRun,
    task: Task,
    splits: Mapping[str, Dataset],
    at_once: int,
) -> Measured:
    """Fit regressions, and return their answers, their size, and the scores of tenants without texts in training."""
    row = training.view.base_model
    base = base_models.load_base_model(row, task)
    tokenizer = tokenizer_of(base, row)
    collate = task.head.collator(tokenizer)
    model = Pooled(base.base_model, training.chosen.features).to(fastest())
    parts = read_parts(task, model, splits, collate, at_once)
    largest = max(part.labels.max() for part in parts.values())
    width = 1 + int(largest)
    fits = _fit_units(training, task, parts)
    of_validation = _answer(_by_tenant(fits), parts["validation"], width)
    if training.view.train.refit:
        fits = [_refit(fit, parts) for fit in fits]
    by_tenant = _by_tenant(fits)

    def outputs(name: str, features: Values) -> Tensor:
        return compute_outputs(by_tenant[name], features, width_of(task, name))

    return Measured(
        {"validation": of_validation, "test": _answer(by_tenant, parts["test"], width)},
        sum(count_parameters(fit.regression) for fit in fits),
        unseen.score_regressions(training, task, outputs, model, tokenizer),
    )


class Fit(NamedTuple):
    """A regression, and the tenants that it answers."""

    names: list[str]
    regression: Pipeline


def _by_tenant(fits: Iterable[Fit]) -> dict[str, Pipeline]:
    by_tenant = dict[str, Pipeline]()
    for fit in fits:
        by_tenant |= dict.fromkeys(fit.names, fit.regression)
    return by_tenant


def _answer(by_tenant: Mapping[str, Pipeline], part: Part, width: int) -> Outcome:
    """Return log-probabilities for a split, (n, width)."""
    return join_outputs(
        part, by_tenant, width, lambda name, features: compute_outputs(by_tenant[name], features, width)
    )


def _refit(fit: Fit, parts: Mapping[str, Part]) -> Fit:
    """Fit a regression, with the penalty that validation has chosen, to train and validation together."""
    features = list[Values]()
    labels = list[Values]()
    for split in ("train", "validation"):
        x, y = _join(parts[split], fit.names)
        features.append(x)
        labels.append(y)
    regression = clone(fit.regression).fit(np.concatenate(features), np.concatenate(labels))
    return Fit(fit.names, regression)


def _fit_units(training: TrainingRun, task: Task, parts: Mapping[str, Part]) -> list[Fit]:
    """Fit a regression to the texts of each tenant or, with a shared head, of each group of tenants with equal labels.

    Without tenants, it is fitted to all texts.
    """
    is_shared = training.view.tenants.head == "shared"
    units = defaultdict[Any, list[str]](list)
    for name in parts["train"].rows:
        unit: object = name
        if is_shared and name in task.facts.tenants:
            unit = task.facts.tenants[name].labels
        units[unit].append(name)
    fits = list[Fit]()
    for names in units.values():
        train = _join(parts["train"], names)
        validation = _join(parts["validation"], names)
        fitted = fit_classifier(training.chosen.features, train, validation)
        fits.append(Fit(names, fitted))
    return fits


def _join(part: Part, names: Iterable[str]) -> XY:
    """Return the features and labels of the examples of some tenants."""
    rows = np.concatenate([part.rows_of(name) for name in names])
    return part.features[rows], part.labels[rows]


def compute_outputs(fitted: Pipeline, features: Values, width: int) -> Tensor:
    """Return log-probabilities, (n, width), the smallest number for classes that the regression does not have."""
    least = torch.finfo(torch.float32).min
    outputs = torch.full((len(features), width), least)
    known = torch.from_numpy(_logs(fitted, features))
    outputs[:, fitted.classes_] = known.float()
    return outputs


def count_parameters(fitted: Pipeline) -> int:
    """Return the number of parameters that are not 0."""
    last = fitted[-1]
    if isinstance(last, KNeighborsClassifier):
        return int(last.n_samples_fit_ * last.n_features_in_)
    learned = [getattr(last, name, 0) for name in LEARNED]
    return sum(map(np.count_nonzero, learned))


def fit_classifier(features: str | None, train: XY, validation: XY) -> Pipeline:
    """Fit the regression with the lowest validation loss (the first of ties), or the nearest class mean.

    For the nearest mean, scikit-learn's probabilities divide each feature by its deviation within classes.

    A class without training examples cannot be predicted, so validation examples of it choose nothing. If all training
    examples have one class, it is always predicted.
    """
    _, labels = train
    if len(np.unique(labels)) == 1:
        return make_pipeline(DummyClassifier()).fit(*train)
    if features == "nearest":
        # NearestCentroid needs a variance; with one text of each class, the nearest text is the nearest mean.
        has_single_texts = len(np.unique(labels)) == len(labels)
        nearest = KNeighborsClassifier(n_neighbors=1) if has_single_texts else NearestCentroid()
        return make_pipeline(nearest).fit(*train)
    scaler = StandardScaler()
    strengths = STRENGTHS
    usual = USUAL
    if features == "words":
        scaler = TfidfTransformer()
        strengths = OF_WORDS
        usual = USUAL_OF_WORDS

    def fit(strength: float) -> Pipeline:
        regression = LogisticRegression(C=strength, max_iter=STEPS)
        return make_pipeline(scaler, regression).fit(*train)

    held_out, wanted = validation
    is_known = np.isin(wanted, labels)
    if not is_known.any():
        return fit(usual)
    return min(map(fit, strengths), key=lambda fitted: _loss(fitted, held_out[is_known], wanted[is_known]))


def _loss(fitted: Pipeline, x: Values, classes: Values) -> float:
    """Return the mean log loss on examples of classes that the regression has."""
    logs = _logs(fitted, x)
    places = np.searchsorted(fitted.classes_, classes)
    of_classes = logs[np.arange(len(classes)), places]
    return float(-of_classes.mean())


def _logs(fitted: Pipeline, x: Values) -> Values:
    least = np.finfo(np.float32).tiny
    return np.log(fitted.predict_proba(x).clip(min=least))
