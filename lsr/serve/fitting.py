"""Fit the rows of a head's last layer to a few examples: a group's rows plus a regularized deviation.

The deviation starts at zero (Evgeniou & Pontil, "Regularized multi-task learning", 2004). Its strength is chosen by
cross-validation. Features are the inputs of the layer, (texts, width). Rows are its weight, (outputs, width), or with
the bias as last column, (outputs, width + 1); a layer without a bias is fitted without one. All is in float64.

A text that occurs several times is in one fold, and its mean over its copies counts once in scores, standard errors and
intervals. `texts` are the numbers of the distinct texts, (examples,), from 0.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from scipy import optimize, special, stats

from lsr.loading.contents import Contents

FOLDS = 10
STRENGTHS = np.logspace(1, -4, 11)  # penalties, from hardly any deviation to nearly a regression of its own
SMALLEST_UNIT = 1e-12  # where all texts have the same features
PRECISE = {"maxiter": 1000, "ftol": 1e-12, "gtol": 1e-8}  # options of L-BFGS
CONFIDENCE = 0.95
RESAMPLES = 2000  # number of bootstrap resamples
SEED = 0

Array = np.ndarray
Interval = tuple[float, float]


class Chosen(NamedTuple):
    """The regularization that cross-validation chooses, and the quality of the fit."""

    strength: float
    is_better: bool  # whether the fit is better than the group's rows and the tenant's present ones
    score: float  # score on texts that the fit has not seen, in the metric of the form
    interval: Interval  # 95 % interval of `score`


class Form(ABC):
    """The form of a task's answers: its loss and its score. Logits are (texts, outputs)."""

    metric: str

    @abstractmethod
    def losses(self, logits: Array, targets: Array) -> Array:  # (texts,)
        """Return the loss of each text."""

    @abstractmethod
    def solve(
        self,
        inputs: Array,
        offsets: Array,
        targets: Array,
        strength: float,
    ) -> Array:
        """Return the deviation (outputs, columns) that minimizes mean loss plus penalty.

        `inputs` are (texts, columns), and `offsets` (texts, outputs) the logits without a deviation. The penalty is
        half of `strength` times the squared norm.
        """

    @abstractmethod
    def measure(self, logits: Array, targets: Array) -> Array:
        """Return what the metric is computed from, of each example: (examples,), or (examples, columns)."""

    @abstractmethod
    def summarize(self, measures: Array) -> float:
        """Return the metric of some texts by their measures."""

    def find_interval(self, measures: Array) -> Interval:
        """Return the 95 % interval of the metric: the percentiles over resampled texts."""
        return _bootstrap(len(measures), lambda picked: self.summarize(measures[picked]))

    def score(self, logits: Array, targets: Array, texts: Array | None = None) -> float:
        """Return the metric of these logits; without `texts`, all are distinct."""
        measures = self.measure(logits, targets)
        return self.summarize(average_copies(measures, texts))

    def interval(self, logits: Array, targets: Array, texts: Array | None = None) -> Interval:
        """Return the 95 % interval of the metric; without `texts`, all are distinct."""
        measures = self.measure(logits, targets)
        return self.find_interval(average_copies(measures, texts))


class LogLossForm(Form):
    """A form whose loss is a log loss, which L-BFGS minimizes."""

    @abstractmethod
    def evaluate(self, logits: Array, targets: Array) -> tuple[Array, Array]:
        """Return the loss of each text, (texts,), and its gradient in the logits, (texts, outputs)."""

    def losses(self, logits: Array, targets: Array) -> Array:
        """Return the log loss of each text."""
        losses, _ = self.evaluate(logits, targets)
        return losses

    def solve(
        self,
        inputs: Array,
        offsets: Array,
        targets: Array,
        strength: float,
    ) -> Array:
        """Return the minimum, which L-BFGS finds from zero."""
        shape = (offsets.shape[1], inputs.shape[1])

        def objective(flat: Array) -> tuple[float, Array]:
            deviation = flat.reshape(shape)
            logits = offsets + inputs @ deviation.T
            losses, of_logits = self.evaluate(logits, targets)
            penalty = strength * (deviation**2).sum() / 2
            gradient = of_logits.T @ inputs / len(inputs) + strength * deviation
            return float(losses.mean() + penalty), gradient.ravel()

        minimum = optimize.minimize(
            objective,
            np.zeros(shape).ravel(),
            jac=True,
            method="L-BFGS-B",
            options=PRECISE,
        )
        return minimum.x.reshape(shape)


class Classes(LogLossForm):
    """One label per text, by number: targets are (texts,)."""

    metric = "accuracy"

    def evaluate(self, logits: Array, targets: Array) -> tuple[Array, Array]:
        """Return the negative logarithm of the probability of each text's label, and its gradient."""
        log_probabilities = special.log_softmax(logits, axis=1)
        places = np.arange(len(targets)), targets
        gradient = np.exp(log_probabilities)
        gradient[places] -= 1
        return -log_probabilities[places], gradient

    def measure(self, logits: Array, targets: Array) -> Array:
        """Return 1 where the label is right, otherwise 0."""
        is_right: Array = logits.argmax(axis=1) == targets
        return is_right.astype(np.float64)

    def summarize(self, measures: Array) -> float:
        """Return the accuracy."""
        return float(measures.mean())

    def find_interval(self, measures: Array) -> Interval:
        """Return the interval of the accuracy by Wilson's method."""
        hits = round(measures.sum())  # a text with different labels may be a part of a hit
        test = stats.binomtest(hits, len(measures))
        interval = test.proportion_ci(CONFIDENCE, "wilson")
        return float(interval.low), float(interval.high)


class MultiLabel(LogLossForm):
    """Any number of labels per text, each by a logistic regression: targets are (texts, outputs), 0 or 1."""

    metric = "f1"

    def evaluate(self, logits: Array, targets: Array) -> tuple[Array, Array]:
        """Return the sum of the log losses of all labels, and its gradient."""
        signs = 2 * targets - 1
        losses = -special.log_expit(signs * logits).sum(axis=1)
        gradient = special.expit(logits) - targets
        return losses, gradient

    def measure(self, logits: Array, targets: Array) -> Array:
        """Return true positives, and the number of labels plus that of predicted labels: (examples, 2).

        A probability of one half predicts a label.
        """
        is_predicted = logits >= 0
        hits = (is_predicted * targets).sum(axis=1)
        counted = is_predicted.sum(axis=1) + targets.sum(axis=1)
        return np.column_stack([hits, counted])

    def summarize(self, measures: Array) -> float:
        """Return F1 over all labels of all texts; 0 where nothing is counted."""
        hits, counted = measures.sum(axis=0)
        return float(2 * hits / counted) if counted else 0.0


class Numbers(Form):
    """A number per text: targets are (texts,)."""

    metric = "rmse"

    def losses(self, logits: Array, targets: Array) -> Array:
        """Return half of the squared errors."""
        return (logits[:, 0] - targets) ** 2 / 2

    def solve(
        self,
        inputs: Array,
        offsets: Array,
        targets: Array,
        strength: float,
    ) -> Array:
        """Return the solution of a ridge regression, by the smaller of both systems of equations."""
        errors = targets - offsets[:, 0]
        count, width = inputs.shape
        penalty = count * strength
        if count < width:
            gram = inputs @ inputs.T
            weights = np.linalg.solve(gram + penalty * np.eye(count), errors)
            deviation = inputs.T @ weights
        else:
            gram = inputs.T @ inputs
            deviation = np.linalg.solve(gram + penalty * np.eye(width), inputs.T @ errors)
        return deviation[None]

    def measure(self, logits: Array, targets: Array) -> Array:
        """Return the squared errors."""
        return 2 * self.losses(logits, targets)

    def summarize(self, measures: Array) -> float:
        """Return the root mean squared error."""
        return float(np.sqrt(measures.mean()))


CLASSES = Classes()
MULTI_LABEL = MultiLabel()
NUMBERS = Numbers()


def average_copies(values: Array, texts: Array | None) -> Array:
    """Return the means of values (examples, ...) over the copies of each distinct text: (distinct texts, ...)."""
    if texts is None:
        return values
    counts = np.bincount(texts)
    sums = np.zeros((len(counts), *values.shape[1:]))
    np.add.at(sums, texts, values)
    means: Array = (sums.T / counts).T
    return means


def _bootstrap(count: int, score: Callable[[Array], float]) -> Interval:
    """Return the percentiles of a score over resampled texts; the draws are the same for the same count.

    `score` takes the numbers of the texts that are drawn, with replacement.
    """
    random = np.random.default_rng(SEED)
    scores = [score(random.integers(count, size=count)) for _ in range(RESAMPLES)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(scores, [tail, 1 - tail])
    return float(low), float(high)


def never_stop() -> None:
    """Let a fit take as long as it needs."""


def choose_strength(
    features: Array,
    targets: Array,
    start: Array,
    form: Form = CLASSES,
    check_time: Callable[[], None] = never_stop,
    texts: Array | None = None,
    present: Array | None = None,
) -> Chosen:
    """Return the strength with the least loss by cross-validation, and whether that beats the group's rows.

    It does if the loss is lower by more than its standard error: the least of several is too low by chance. So it must
    be than that of the tenant's `present` rows, which may have been trained on other texts. `check_time` is called
    before each fit, and may raise an error. Without `texts`, all are distinct.
    """
    folds = assign_folds(targets, texts)
    logits = cross_validate(features, targets, start, folds, form, check_time)

    def losses_of(logits: Array) -> Array:
        return average_copies(form.losses(logits, targets), texts)

    losses = np.stack([losses_of(held_out) for held_out in logits])
    best = int(losses.mean(axis=1).argmin())
    rivals = [start] if present is None else [start, present]
    gains = [losses_of(compute_logits(features, rows)) - losses[best] for rows in rivals]
    return Chosen(
        strength=float(STRENGTHS[best]),
        is_better=all(bool(gain.mean() > stats.sem(gain)) for gain in gains),
        score=form.score(logits[best], targets, texts),
        interval=form.interval(logits[best], targets, texts),
    )


def fit_if_better(
    features: Array,
    targets: Array,
    start: Array,
    form: Form = CLASSES,
    check_time: Callable[[], None] = never_stop,
    texts: Array | None = None,
    present: Array | None = None,
) -> tuple[Array, Chosen]:
    """Return rows that are fitted with the strength that is chosen, or those of the group where it is not better."""
    chosen = choose_strength(features, targets, start, form, check_time, texts, present)
    if not chosen.is_better:
        return start, chosen
    return fit_rows(features, targets, start, chosen.strength, form), chosen


def score_group(
    features: Array,
    targets: Array,
    rows: Array,
    form: Form = CLASSES,
    texts: Array | None = None,
) -> float:
    """Return the score of these rows of a head."""
    logits = compute_logits(features, rows)
    return form.score(logits, targets, texts)


def layer_of(group: Contents) -> str:
    """Return the name of the head's last layer."""
    weight = next(key for key in group.heads if key.endswith(".weight"))
    return weight.removesuffix(".weight")


def rows_of(group: Contents, width: int) -> Array:
    """Return the weight of a head's last layer, (outputs, width), or with its bias as last column."""
    layer = layer_of(group)
    weight = group.heads[f"{layer}.weight"].double().numpy()
    assert weight.shape[1] == width
    bias = group.heads.get(f"{layer}.bias")
    if bias is None:
        return weight
    return np.column_stack([weight, bias.double().numpy()])


def with_rows(group: Contents, rows: Array) -> Contents:
    """Return a tenant's contents with these rows of the head's last layer, as `rows_of` returns them."""
    layer = layer_of(group)
    tensor = torch.from_numpy(rows).float()
    heads = dict(group.heads)
    width = heads[f"{layer}.weight"].shape[1]
    heads[f"{layer}.weight"] = tensor[:, :width].contiguous()
    if f"{layer}.bias" in heads:
        heads[f"{layer}.bias"] = tensor[:, width].contiguous()
    return replace(group, heads=heads)


def compute_logits(features: Array, rows: Array) -> Array:
    """Return the logits, (texts, outputs), of features (texts, width) by rows with or without a bias."""
    if _has_bias(rows, features):
        features = _append_ones(features)
    logits: Array = features @ rows.T
    return logits


def _has_bias(rows: Array, features: Array) -> bool:
    return rows.shape[1] > features.shape[1]


def _append_ones(features: Array) -> Array:
    """Return features with a column of ones for the bias."""
    return np.column_stack([features, np.ones(len(features))])


def assign_folds(targets: Array, texts: Array | None = None) -> Array:
    """Assign each example to a fold, distributing equal or similar targets evenly, in the order of the examples.

    Copies of a text are in one fold, which the target of the first determines.
    """
    if texts is not None:
        _, first = np.unique(texts, return_index=True)
        of_distinct = assign_folds(targets[first])
        return of_distinct[texts]
    columns = np.atleast_2d(targets.T)
    order = np.lexsort(columns)
    folds = np.empty(len(targets), int)
    folds[order] = np.arange(len(targets)) % min(FOLDS, len(targets))
    return folds


def cross_validate(
    features: Array,
    targets: Array,
    start: Array,
    folds: Array,
    form: Form = CLASSES,
    check_time: Callable[[], None] = never_stop,
) -> Array:
    """Return the logits of each example by a fit without the example's fold: (strengths, examples, outputs)."""
    logits = np.empty((len(STRENGTHS), len(targets), len(start)))
    for fold in np.unique(folds):
        is_held_out = folds == fold
        known = features[~is_held_out]
        unseen = features[is_held_out]
        for number, strength in enumerate(STRENGTHS):
            check_time()
            rows = fit_rows(known, targets[~is_held_out], start, strength, form)
            logits[number, is_held_out] = compute_logits(unseen, rows)
    return logits


def fit_rows(
    features: Array,
    targets: Array,
    start: Array,
    strength: float,
    form: Form = CLASSES,
) -> Array:
    """Return `start` plus the deviation that minimizes mean loss plus penalty.

    The penalty is half of `strength` times the deviation's squared norm, for features that are scaled to mean squared
    norm one, so that it does not depend on their scale. With a bias they are centered first, so that it does not depend
    on their mean either; without one, nothing could undo the shift.
    """
    offsets = compute_logits(features, start)
    if not _has_bias(start, features):
        unit = _unit_of(features)
        return start + form.solve(features / unit, offsets, targets, strength) / unit
    center = features.mean(axis=0)
    centered = features - center
    unit = _unit_of(centered)
    inputs = _append_ones(centered / unit)
    deviation = form.solve(inputs, offsets, targets, strength)
    weight = deviation[:, :-1] / unit
    bias = deviation[:, -1] - weight @ center
    return start + np.column_stack([weight, bias])


def _unit_of(features: Array) -> float:
    """Return the root of the mean squared norm of features (texts, width)."""
    squares = (features**2).sum(axis=1)
    return max(float(np.sqrt(squares.mean())), SMALLEST_UNIT)
