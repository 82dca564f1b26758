"""From the outputs of a model to its predictions, metrics, baselines and tables."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from pipeline.tasks.task import Columns, Groups, Numbers, Outcome, Part, Scores

NEGATIVE = "negative_"  # prefix of a score that is the negative of a loss
Answers_co = TypeVar("Answers_co", covariant=True)


class Answering(Protocol[Answers_co]):
    """The ways to get answers from a trained model; a task uses one of them."""

    def by_outputs(self) -> Answers_co:
        """Return the outputs of the model and its head."""
        ...

    def by_bank(self) -> Answers_co:
        """Return the outputs of the bank of its tenants."""
        ...

    def by_texts(self) -> Answers_co:
        """Return the generated texts."""
        ...


class OfPart(NamedTuple):
    """The examples of a separately scored part, with its scoring."""

    name: str
    scoring: "Scoring"
    rows: Numbers  # positions of the examples
    outcome: Outcome


class Scoring(Part, ABC):
    """Compares the predictions for a split with its labels."""

    has_one_class_each = False  # each example has one class, of its own or of its tenant's
    has_thresholds = False  # a label applies from a probability that validation chooses

    @staticmethod
    def answers(model: Answering[Answers_co]) -> Answers_co:
        """Return the answers of a trained model, in the way that its task is scored."""
        return model.by_outputs()

    @property
    def decides(self) -> str:
        """The score of the validation split that selects models by their outputs: the entry's first metric."""
        return self.entry.metrics[0]

    def best_thresholds(self, validation: Outcome) -> tuple[float, ...] | None:
        """Return the best thresholds per label for a validation split; None for tasks without thresholds."""
        return None

    @abstractmethod
    def predict(self, outcome: Outcome) -> Numbers:
        """Return the prediction for each example or, for choices, for each group."""

    def extract_targets(self, labels: Numbers, groups: Groups) -> Numbers:
        """Return the targets with which predictions are compared."""
        return labels

    def constants(self, labels: Numbers) -> Iterable[Any]:
        """Return constant predictions that include the best constant for each metric of the entry on these labels."""
        raise NotImplementedError

    def losses(self, outcome: Outcome) -> tuple[float, float]:
        """Return the mean loss, and that of the best constant output."""
        raise NotImplementedError

    def scores(self, outcome: Outcome) -> Scores:
        """Return the entry's metrics; predictions that are not finite are rejected."""
        from pipeline.tasks import scores

        return scores.score(self.entry.metrics, *collect_predictions(self, outcome))

    def metrics(self, outcome: Outcome, resamples: int) -> Scores:
        """Return the entry's metrics with 95 % intervals and baselines, the first as `score` too, and the loss."""
        from pipeline.tasks import scores

        names = self.entry.metrics
        predicted, labels, groups = collect_predictions(self, outcome)
        scored = scores.score_with_intervals(names, predicted, labels, groups, resamples)
        loss, baseline = self.losses(outcome)
        return {
            "score": scored[names[0]],
            **scored,
            **baselines(self, labels, groups),
            "loss": loss,
            "loss_baseline": baseline,
            "examples": len(labels),
        }

    def of_parts(self, outcome: Outcome) -> list[OfPart]:
        """Return the examples of each separately scored part."""
        parts = self.facts.rows_of_parts(len(outcome.labels), outcome.groups)
        return [OfPart(name, self, rows, outcome) for name, rows in parts.items()]

    def parts(self, outcome: Outcome, resamples: int) -> tuple[Scores, dict[str, Scores]]:
        """Return the metrics of all examples, and of each separately scored part."""
        metrics = self.metrics(outcome, resamples)
        return metrics, {"all": metrics}

    @abstractmethod
    def table(self, outcome: Outcome) -> Columns:
        """Return columns with one value per example: actual, predicted, and both as groups for a plot."""

    def by_class(self, outcome: Outcome) -> Sequence[tuple[str | float, ...]]:
        """Return a row of `scores.BY_CLASS` per class or label; empty if parts have different ones."""
        return ()


def choose_selection_metric(scoring: Scoring) -> str:
    """Return the validation score that selects the checkpoint: exact_match if the entry has `select`."""
    return "exact_match" if scoring.entry.select else scoring.decides


def name_selection_score(scoring: Scoring, score: float) -> tuple[str, float]:
    """Return the name and value of the validation score for readers: a loss, where training maximizes its negative."""
    name = choose_selection_metric(scoring)
    if name.startswith(NEGATIVE):
        return name.removeprefix(NEGATIVE), -score
    return name, score


def collect_predictions(scoring: Scoring, outcome: Outcome) -> tuple[Numbers, Numbers, Groups]:
    """Return the inputs of the entry's metrics: predictions, targets, and the groups of examples."""
    groups = outcome.groups if scoring.entry.group else None
    labels = scoring.extract_targets(outcome.labels, outcome.groups)
    return scoring.predict(outcome), labels, groups


def best_constants(scoring: Scoring, labels: Numbers, groups: Groups) -> dict[str, Numbers]:
    """Return the predictions of the best constant for each metric of an entry.

    It is the best on the scored labels themselves, an upper bound for any constant chosen without them.
    """
    from pipeline.tasks import scores

    best = dict[str, Numbers]()
    highest = Scores()
    for constant in scoring.constants(labels):
        predictions = np.full(labels.shape, constant)
        for name, value in scores.score(scoring.entry.metrics, predictions, labels, groups).items():
            if name not in best or value > highest[name]:
                best[name] = predictions
                highest[name] = value
    return best


def baselines(scoring: Scoring, labels: Numbers, groups: Groups) -> Scores:
    """Return the score of the constant baseline for each metric of an entry."""
    from pipeline.tasks import scores

    baselines = Scores()
    for name, predictions in best_constants(scoring, labels, groups).items():
        baselines[f"{name}_baseline"] = scores.score([name], predictions, labels, groups)[name]
    return baselines
