"""Regression on frozen-encoder features by scikit-learn: the baseline of a run, and `adapter: regression`.

It is logistic for classes, for each label in multi-label tasks, and for each tenant's classes, and a ridge regression
for numbers. Features are standardized; the validation split selects the penalty. The encoder is not trained.
"""

from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional
from transformers import DataCollatorWithPadding

from pipeline import evaluation
from pipeline.core import console
from pipeline.core.console import Advance
from pipeline.data import base_models, tokens
from pipeline.methods.batches import tokenizer_of
from pipeline.methods.device import fastest
from pipeline.params import EvaluateView
from pipeline.tasks import Outcome, Task
from pipeline.tasks.head import Head
from pipeline.tasks.scoring import Scoring
from pipeline.tasks.task import Groups

STRENGTHS = [1e-5, 1e-4, 0.001, 0.01, 0.1, 1.0, 10.0]  # candidates for the inverse of the penalty's strength
USUAL = 0.01  # strength for a tenant without validation examples
STEPS = 1000  # maximum steps of the solver
ABSENT = -100.0  # the logit of a class that the training examples do not have
SPLITS = ("train", "validation", "test")
Values = NDArray[Any]
XY = tuple[Values, Values]  # features (n, width), and labels (n,), or (n, labels)


class Linear(NamedTuple):
    """A linear layer."""

    weight: Values  # (outputs, width)
    bias: Values  # (outputs,)

    def outputs(self, features: Values) -> Tensor:  # (n, outputs)
        """Return the outputs for features (n, width)."""
        outputs = features @ self.weight.T + self.bias
        return torch.from_numpy(outputs).float()


class Options(NamedTuple):
    """The options of a fit."""

    outputs: int  # their number
    strength: float
    has_bias: bool


Fit = Callable[[Values, Values, Options], Linear]  # fits features and labels


def fit_classes(features: Values, labels: Values, options: Options) -> Linear:
    """Fit a logistic regression to labels (n,), with one logit per class."""
    known = np.unique(labels)
    weight = np.zeros((options.outputs, features.shape[1]))
    bias = np.full(options.outputs, ABSENT)
    if len(known) == 1:
        bias[known] = 0.0
        return Linear(weight, bias)
    fitted = LogisticRegression(
        C=options.strength,
        fit_intercept=options.has_bias,
        max_iter=STEPS,
    )
    fitted.fit(features, labels)
    coefficients = fitted.coef_
    intercepts = fitted.intercept_
    if len(known) == 2:  # with two classes, the difference of their logits is fitted
        halves = np.array([-0.5, 0.5])
        coefficients = halves[:, None] * coefficients
        intercepts = halves * intercepts
    weight[known] = coefficients
    bias[known] = intercepts
    return Linear(weight, bias)


def fit_labels(features: Values, labels: Values, options: Options) -> Linear:
    """Fit a logistic regression to each column of labels (n, labels) of 0 and 1."""
    weight = np.zeros((options.outputs, features.shape[1]))
    bias = np.zeros(options.outputs)
    of_two = options._replace(outputs=2)
    for number, applies in enumerate(labels.T):
        numbers = applies.astype(int)
        of_label = fit_classes(features, numbers, of_two)
        (weight[number],) = np.diff(of_label.weight, axis=0)
        (bias[number],) = np.diff(of_label.bias)
    return Linear(weight, bias)


def fit_number(features: Values, labels: Values, options: Options) -> Linear:
    """Fit a ridge regression to labels (n,)."""
    fitted = Ridge(
        alpha=1 / options.strength,
        fit_intercept=options.has_bias,
    )
    fitted.fit(features, labels)
    weight = fitted.coef_[None]
    bias = np.array([fitted.intercept_])
    return Linear(weight, bias)


class Estimator(NamedTuple):
    """The fit function and the loss for one problem type."""

    fit: Fit
    loss: Callable[[Tensor, Tensor], Tensor]
    has_classes: bool = False  # whether each label is one class


def mean_squared_error(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the mean squared error of outputs (n, 1)."""
    return functional.mse_loss(outputs[:, 0], labels.float())


def binary_cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the binary cross-entropy of logits (n, labels)."""
    return functional.binary_cross_entropy_with_logits(outputs, labels.float())


ESTIMATORS = {  # estimators by problem_type of transformers
    "single_label_classification": Estimator(fit_classes, functional.cross_entropy, has_classes=True),
    "multi_label_classification": Estimator(fit_labels, binary_cross_entropy),
    "regression": Estimator(fit_number, mean_squared_error),
}


def fit(
    estimator: Estimator,
    outputs: int,
    train: XY,
    validation: XY,
    *,
    has_bias: bool = True,
    refit: bool = False,
) -> Linear:
    """Fit regressions to train and return the one with the lowest validation loss, the first of ties.

    A class without training examples cannot be predicted, so validation examples of it choose nothing. With `refit`,
    return one with the same strength that is fitted to train and validation together.
    """
    held_out, wanted = validation
    if estimator.has_classes:
        is_known = np.isin(wanted, train[1])
        held_out, wanted = held_out[is_known], wanted[is_known]
    candidates = dict[float, Linear]()
    for strength in STRENGTHS if len(wanted) else [USUAL]:
        options = Options(outputs, strength, has_bias)
        candidates[strength] = _fit_standardized(estimator, train, options)

    def loss(strength: float) -> float:
        outputs = candidates[strength].outputs(held_out)
        value = estimator.loss(outputs, torch.from_numpy(wanted))
        return float(value)

    best = min(candidates, key=loss)
    if not refit:
        return candidates[best]
    together = [np.concatenate(both) for both in zip(train, validation, strict=True)]
    return _fit_standardized(estimator, (together[0], together[1]), Options(outputs, best, has_bias))


def _fit_standardized(estimator: Estimator, examples: XY, options: Options) -> Linear:
    """Fit a regression to standardized features, and return it for the features as they are."""
    features, labels = examples
    scaler = StandardScaler(with_mean=options.has_bias).fit(features)
    weight, bias = estimator.fit(scaler.transform(features), labels, options)
    unscaled = weight / scaler.scale_
    shift = unscaled @ scaler.mean_ if options.has_bias else 0.0
    return Linear(unscaled, bias - shift)


class Pooled(nn.Module):
    """An encoder whose `logits` are text features: the mean of its last states over tokens, or the first token's.

    For "words", features are the counts of each token in the vocabulary, whose size is the encoder's.
    """

    def __init__(self, encoder: Any, features: str | None) -> None:
        super().__init__()
        # Of an encoder-decoder the encoder alone: T5's decoder needs an input of its own.
        self.encoder = encoder.get_encoder() if encoder.config.is_encoder_decoder else encoder
        self.features = features

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        tenant: Tensor | None = None,
        **inputs: Tensor,
    ) -> SimpleNamespace:
        """Return the features of each text, (n, width)."""
        if self.features == "words":
            none = torch.zeros(len(input_ids), self.encoder.config.vocab_size, device=input_ids.device)
            counts = none.scatter_add(1, input_ids, attention_mask.float())
            return SimpleNamespace(logits=counts)
        encoded = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        states = encoded.last_hidden_state
        if self.features == "first":
            texts = torch.arange(len(states), device=states.device)
            first = attention_mask.argmax(dim=1)  # not 0 where padding comes before the text
            return SimpleNamespace(logits=states[texts, first])
        shares = attention_mask / attention_mask.sum(dim=1, keepdim=True)
        weighted = shares[:, :, None] * states
        return SimpleNamespace(logits=weighted.sum(dim=1))


class Part(NamedTuple):
    """The features and targets of the examples of a split."""

    features: Values  # (n, width)
    labels: Values
    groups: Groups
    rows: Mapping[str, Values]  # positions of the examples of each tenant; without tenants, of all

    def of(self, name: str) -> XY:
        """Return the features and labels of a tenant's examples."""
        rows = self.rows_of(name)
        return self.features[rows], self.labels[rows]

    def rows_of(self, name: str) -> Values:
        """Return the positions of a tenant's examples."""
        return self.rows.get(name, np.arange(0))


class Baseline(NamedTuple):
    """The predictions of a regression for the test split."""

    scoring: Scoring  # scoring with this fit's thresholds
    outcome: Outcome
    examples: int  # number of training examples


def of_task(view: EvaluateView, task: Task) -> Baseline | None:
    """Return the regression on the mean of the last states of the base model, which is not changed.

    None if `evaluate.regression_baseline` disables it, the model generates texts, or its task type has another loss.
    """
    count = view.evaluate.regression_baseline
    if count == "none" or not can_fit(task):
        return None
    parts = _read(view, task, count)
    train = parts["train"]
    validation = parts["validation"]
    layers = fit_parts(task, train, validation)
    of_validation = predict(layers, validation)
    tuned = task.tune_thresholds(of_validation)
    examples = len(train.labels)
    if view.refit:  # as the adapter
        layers = fit_parts(task, train, validation, refit=True)
        examples += len(validation.labels)
    return Baseline(tuned.scoring, predict(layers, parts["test"]), examples)


def fit_parts(
    task: Task,
    train: Part,
    validation: Part,
    *,
    has_bias: bool = True,
    refit: bool = False,
) -> dict[str, Linear]:
    """Fit a regression per tenant, as `fit` does; without tenants, to all examples."""
    layers = dict[str, Linear]()
    for name in train.rows:
        layers[name] = fit(
            estimator_of(task),
            width_of(task, name),
            train.of(name),
            validation.of(name),
            has_bias=has_bias,
            refit=refit,
        )
    return layers


def predict(layers: Mapping[str, Linear], part: Part) -> Outcome:
    """Return the predictions of regressions."""
    width = max(len(layer.bias) for layer in layers.values())
    return join_outputs(part, layers, width, lambda name, features: layers[name].outputs(features))


def join_outputs(
    part: Part,
    names: Iterable[str],
    width: int,
    outputs_of: Callable[[str, Values], Tensor],
) -> Outcome:
    """Return the outputs (n, width) of regressions for the examples of each of these tenants.

    `outputs_of` returns those of a tenant for features (n, width of the model). Where a tenant has fewer outputs, and
    for other tenants, they are the smallest number.
    """
    outputs = torch.full((len(part.labels), width), torch.finfo(torch.float32).min)
    for name in part.rows.keys() & {*names}:
        rows = part.rows_of(name)
        features, _ = part.of(name)
        own = outputs_of(name, features)
        outputs[rows, : own.shape[1]] = own
    return Outcome(outputs, part.labels, part.groups)


def read_parts(
    task: Task,
    model: nn.Module,
    splits: Mapping[str, Dataset],
    collate: DataCollatorWithPadding,
    batch_size: int,
    advance: Advance = lambda count: None,
) -> dict[str, Part]:
    """Return the features of the examples of each split, which are the `logits` of a model, with their labels."""
    parts = dict[str, Part]()
    for split, examples in splits.items():
        features = evaluation.outputs(task.head, model, examples, collate, batch_size, advance)
        outcome = evaluation.outcome(features, examples)
        parts[split] = Part(
            features.numpy(),
            outcome.labels,
            outcome.groups,
            task.facts.rows_of_parts(len(outcome.labels), outcome.groups),
        )
    return parts


def can_fit(task: Task) -> bool:
    """Return whether a regression can fit the outputs of a task: not for text generation or your own task types."""
    return task.head.fields().get("problem_type") in ESTIMATORS


def estimator_of(task: Task) -> Estimator:
    """Return the fit function and loss for the labels of a task."""
    return ESTIMATORS[task.head.fields()["problem_type"]]


def width_of(task: Task, name: str) -> int:
    """Return the number of outputs of a tenant or, without tenants, of the head."""
    if name in task.facts.tenants:
        return Head.width(task.facts.tenants[name].labels)
    return Head.width(task.head.names)


def _read(view: EvaluateView, task: Task, count: int | Literal["all"]) -> dict[str, Part]:
    """Return the features of the test split, and of a limited sample of train and validation.

    For tenants, the limit is per tenant.
    """
    splits = {}
    for split in SPLITS:
        whole = tokens.load_tokens(split)
        splits[split] = whole
        if split != "test" and count != "all":
            drawn = _sample(task, whole, count)
            splits[split] = whole.select(drawn)
    base = base_models.load_base_model(view.base_model, task)
    collate = task.head.collator(tokenizer_of(base, view.base_model))
    model = Pooled(base.base_model, "mean").to(fastest())
    total = sum(map(len, splits.values()))
    with console.progress("evaluate, regression on the frozen encoder", total, "examples") as advance:
        return read_parts(task, model, splits, collate, view.evaluate.batch_size, advance)


def _sample(task: Task, examples: Dataset, count: int) -> list[int]:
    """Draw the positions of a limited sample of examples, per tenant if there are tenants."""
    labels = tokens.labels_of(examples)
    parts = task.facts.rows_of_parts(len(labels), tokens.groups_of(examples))
    drawn = list[int]()
    for rows in parts.values():
        order = np.random.default_rng(0).permutation(rows)
        drawn += order[:count].tolist()
    return sorted(drawn)
