"""Fit a tenant's head to a few labeled texts in seconds, without changing the shared adapter.

The rows of the head are those of the tenant's group plus a deviation, which starts at zero and is regularized
(Evgeniou & Pontil, "Regularized multi-task learning", 2004). Its strength is chosen by cross-validation.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from scipy import optimize, special, stats
from torch import nn

from lsr.errors import InputError
from lsr.loading.contents import Contents
from lsr.serve.bank import AdapterBank
from lsr.serve.groups import labels_of, make_member
from lsr.serve.modules import Version
from lsr.serve.passes import BatchRunner
from lsr_onnx.names import BASE
from lsr_onnx.rows import TokenizedText

FOLDS = 10
MIN_TEXTS = 4
STRENGTHS = np.logspace(1, -4, 11)  # penalties, from hardly any deviation to nearly a regression of its own
SMALLEST_UNIT = 1e-12  # where all texts have the same features
BATCH = 32  # texts
CONFIDENCE = 0.95

Array = np.ndarray


class Chosen(NamedTuple):
    """The regularization that cross-validation chooses, and what it says of the fit."""

    strength: float
    is_better: bool  # than the group's rows
    accuracy: float  # on texts that the fit has not seen
    interval: tuple[float, float]  # of `accuracy`, by Wilson's method


class Fit(NamedTuple):
    """A tenant's fitted head."""

    contents: Contents  # with the group's own rows where the fit is not better
    chosen: Chosen
    group_accuracy: float  # of the group's rows on the same texts


class Example(NamedTuple):
    """A labeled text, or pair of texts."""

    text: str | list[str]
    label: str


def fit_tenant(passes: BatchRunner, name: str, examples: Sequence[Example], labels: Sequence[str] | None = None) -> Fit:
    """Fit a tenant's head to labeled texts; `labels` are all possible labels in order.

    By default the tenant's labels in the bank, otherwise the labels of the examples in alphabetical order. The bank
    does not change; `bank.add(name, fit.contents, replace=True)` stores the result.

    Raises:
        InputError: if there are too few texts, of two labels at least, a label is not among `labels`, or no tenant of
            the bank has these labels.
    """
    labels = _choose_labels(passes.bank, name, examples, labels)
    targets = _number_labels(examples, labels)
    group = make_member(passes.bank, name, tuple(labels))
    features = read_features(passes, group, name, [example.text for example in examples])
    start = rows_of(group, features.shape[1])
    chosen = choose_strength(features, targets, start)
    rows = start
    if chosen.is_better:
        rows = fit_rows(features, targets, start, chosen.strength)
    return Fit(with_rows(group, rows), chosen, score_group(features, targets, start))


def choose_strength(features: Array, targets: Array, start: Array) -> Chosen:
    """Return the strength with the least log loss by cross-validation, and whether that beats the group's rows.

    It does if the log loss is lower by more than its standard error: the least of several is too low by chance.
    """
    losses, correct = cross_validate(features, targets, start, assign_folds(targets))
    best = int(losses.mean(axis=1).argmin())
    count = len(targets)
    of_group = -_log_probabilities(features, start)[np.arange(count), targets]
    gain = of_group - losses[best]
    hits = int(correct[best].sum())
    interval = stats.binomtest(hits, count).proportion_ci(CONFIDENCE, "wilson")
    return Chosen(
        strength=float(STRENGTHS[best]),
        is_better=bool(gain.mean() > stats.sem(gain)),
        accuracy=hits / count,
        interval=(float(interval.low), float(interval.high)),
    )


def score_group(features: Array, targets: Array, rows: Array) -> float:
    """Return the accuracy of these rows of a head."""
    logits = with_ones(features) @ rows.T
    is_right = logits.argmax(axis=1) == targets
    return float(is_right.mean())


def _choose_labels(
    bank: AdapterBank,
    name: str,
    examples: Sequence[Example],
    labels: Sequence[str] | None,
) -> Sequence[str]:
    """Return the labels that a tenant may answer with.

    Raises:
        InputError: if there are too few texts, of two labels at least, or the tenant predicts a number.
    """
    given = sorted({example.label for example in examples})
    if len(examples) < MIN_TEXTS or len(given) < 2:
        found = f"got {len(examples)} of {len(given)}"
        raise InputError(f"needed: at least {MIN_TEXTS} texts, of two different labels; {found}")
    if labels is not None:
        return labels
    if name not in bank.names:
        return given
    own = labels_of(bank, name)
    if own is None:
        raise InputError(f"{name}: predicts a number; only classes are fitted")
    return own


def _number_labels(examples: Sequence[Example], labels: Sequence[str]) -> Array:
    """Return the number of each example's label.

    Raises:
        InputError: if a label is not in `labels`.
    """
    for example in examples:
        if example.label not in labels:
            raise InputError(f"label {example.label!r}: is not one of {', '.join(labels)}")
    places = {label: number for number, label in enumerate(labels)}
    return np.array([places[example.label] for example in examples])


def read_features(passes: BatchRunner, group: Contents, name: str, texts: Sequence[str | list[str]]) -> Array:
    """Return a tenant's input features of the head's last layer in float64: (texts, width), pooled by the base model.

    Raises:
        InputError: if a text is not valid.
    """
    bank = passes.bank
    version = Version(dict(group.task or {}), {}, 0)
    rows = passes.rows(name, version, texts)
    parts = list[Array]()
    with bank.shared.one_thread, _without_head(bank, group):
        for batch in _batches(rows):
            inputs = passes.tokenizer.pad([row.inputs for row in batch], return_tensors="pt")
            with torch.no_grad():
                pooled = bank(**inputs, adapter_names=[BASE] * len(batch)).logits
            parts.append(pooled.double().numpy())
    return np.concatenate(parts)


def _batches(rows: Sequence[TokenizedText]) -> Iterator[Sequence[TokenizedText]]:
    for first in range(0, len(rows), BATCH):
        yield rows[first : first + BATCH]


@contextmanager
def _without_head(bank: AdapterBank, group: Contents) -> Iterator[None]:
    """Let the model return the inputs of its head's last layer in place of the outputs."""
    name = layer_of(group)
    layer = bank.model.get_submodule(name)
    bank.model.set_submodule(name, nn.Identity())
    try:
        yield
    finally:
        bank.model.set_submodule(name, layer)


def layer_of(group: Contents) -> str:
    """Return the name of the head's last layer."""
    weight = next(key for key in group.heads if key.endswith(".weight"))
    return weight.removesuffix(".weight")


def rows_of(group: Contents, width: int) -> Array:
    """Return weight and bias of a head's last layer as one matrix: (labels, width + 1)."""
    layer = layer_of(group)
    weight = group.heads[f"{layer}.weight"].double().numpy()
    bias = group.heads.get(f"{layer}.bias")
    last = np.zeros(len(weight)) if bias is None else bias.double().numpy()
    assert weight.shape[1] == width
    return np.column_stack([weight, last])


def with_rows(group: Contents, rows: Array) -> Contents:
    """Return a tenant's contents with these rows of the head's last layer: (labels, width + 1)."""
    layer = layer_of(group)
    heads = dict(group.heads)
    tensor = torch.from_numpy(rows).float()
    heads[f"{layer}.weight"] = tensor[:, :-1].contiguous()
    if f"{layer}.bias" in heads:
        heads[f"{layer}.bias"] = tensor[:, -1].contiguous()
    return replace(group, heads=heads)


def with_ones(features: Array) -> Array:
    """Return features with a column of ones for the bias."""
    return np.column_stack([features, np.ones(len(features))])


def assign_folds(targets: Array) -> Array:
    """Assign each example to a fold, distributing the examples of each label evenly in order."""
    order = np.argsort(targets, kind="stable")
    folds = np.empty(len(targets), int)
    folds[order] = np.arange(len(targets)) % min(FOLDS, len(targets))
    return folds


def cross_validate(features: Array, targets: Array, start: Array, folds: Array) -> tuple[Array, Array]:
    """Return log loss and correctness of each example, by a fit without the example's fold.

    Both are (strengths, examples).
    """
    losses = np.empty((len(STRENGTHS), len(targets)))
    correct = np.empty((len(STRENGTHS), len(targets)), bool)
    for fold in np.unique(folds):
        is_held_out = folds == fold
        known = features[~is_held_out]
        unseen = features[is_held_out]
        own = targets[is_held_out]
        for number, strength in enumerate(STRENGTHS):
            rows = fit_rows(known, targets[~is_held_out], start, strength)
            log_probabilities = _log_probabilities(unseen, rows)
            losses[number, is_held_out] = -log_probabilities[np.arange(len(own)), own]
            correct[number, is_held_out] = log_probabilities.argmax(axis=1) == own
    return losses, correct


def fit_rows(features: Array, targets: Array, start: Array, strength: float) -> Array:
    """Return `start` plus the deviation that minimizes mean log loss plus penalty: (labels, width + 1), in float64.

    The penalty is half of `strength` times the deviation's squared norm, for features that are centered and scaled to
    mean squared norm one, so that it depends neither on their scale nor on their mean.
    """
    center = features.mean(axis=0)
    centered = features - center
    unit = max(np.sqrt((centered**2).sum(axis=1).mean()), SMALLEST_UNIT)
    inputs = with_ones(centered / unit)
    offsets = with_ones(features) @ start.T
    is_own = np.eye(len(start))[targets]
    count = len(targets)

    def objective(flat: Array) -> tuple[float, Array]:
        deviation = flat.reshape(start.shape)
        log_probabilities = special.log_softmax(offsets + inputs @ deviation.T, axis=1)
        loss = -(log_probabilities * is_own).sum() / count + strength * (deviation**2).sum() / 2
        gradient = (np.exp(log_probabilities) - is_own).T @ inputs / count + strength * deviation
        return float(loss), gradient.ravel()

    zeros = np.zeros(start.size)
    options = {"maxiter": 1000, "ftol": 1e-12, "gtol": 1e-8}
    minimum = optimize.minimize(objective, zeros, jac=True, method="L-BFGS-B", options=options)
    deviation = minimum.x.reshape(start.shape)
    weight = deviation[:, :-1] / unit
    bias = deviation[:, -1] - weight @ center
    return start + np.column_stack([weight, bias])


def _log_probabilities(features: Array, rows: Array) -> Array:
    """Return the logarithm of each label's probability: (texts, labels)."""
    logits = with_ones(features) @ rows.T
    log_probabilities: Array = special.log_softmax(logits, axis=1)
    return log_probabilities
