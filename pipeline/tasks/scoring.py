"""From the outputs of a model to its predictions, metrics, baselines and tables."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from pipeline.tasks.task import Columns, Groups, Numbers, Outcome, Part, Scores

Answers_co = TypeVar("Answers_co", covariant=True)


class Answering(Protocol[Answers_co]):
    """How a trained model can be made to answer; a task takes one of the ways."""

    def by_outputs(self) -> Answers_co:
        """Return what the model and its head predict."""
        ...

    def by_bank(self) -> Answers_co:
        """Return what the bank of its tenants predicts."""
        ...

    def by_texts(self) -> Answers_co:
        """Return what it generates."""
        ...


class OfPart(NamedTuple):
    """The examples of a part that is scored by itself, and what scores them."""

    name: str
    scoring: "Scoring"
    rows: Numbers  # positions of the examples
    outcome: Outcome


class Scoring(Part, ABC):
    """Compares what a model predicts for a split with what is right."""

    has_one_class_each = False  # each example has one class, of its own or of its tenant's
    has_thresholds = False  # a label applies from a probability that validation chooses

    @staticmethod
    def answers(model: Answering[Answers_co]) -> Answers_co:
        """Return what a trained model answers, in the way that its task is scored by."""
        return model.by_outputs()

    @property
    def decides(self) -> str:
        """The score of a validation split that decides between models, by their outputs: the entry's first metric."""
        return self.row.metrics[0]

    def best_thresholds(self, validation: Outcome) -> tuple[float, ...] | None:
        """Return the thresholds that are best for a validation split, by label; None where there are none."""
        return None

    @abstractmethod
    def predict(self, outcome: Outcome) -> Numbers:
        """Return what is predicted of each example or, for choices, of each group."""

    def extract_targets(self, labels: Numbers, groups: Groups) -> Numbers:
        """Return what predictions are compared with."""
        return labels

    def constants(self, labels: Numbers) -> Iterable[Any]:
        """Return constant predictions, one of which is the best constant for each metric of the entry on the labels."""
        raise NotImplementedError

    def losses(self, outcome: Outcome) -> tuple[float, float]:
        """Return the mean loss, and that of the best constant output."""
        raise NotImplementedError

    def scores(self, outcome: Outcome) -> Scores:
        """Return the entry's metrics; predictions that are no finite numbers are refused."""
        from pipeline.tasks import scores

        return scores.score(self.row.metrics, *collect_predictions(self, outcome))

    def metrics(self, outcome: Outcome, resamples: int) -> Scores:
        """Return the entry's metrics with 95 % intervals and baselines, the first as `score` too, and the loss."""
        from pipeline.tasks import scores

        names = self.row.metrics
        predicted, labels, groups = collect_predictions(self, outcome)
        scored = scores.score(names, predicted, labels, groups)
        metrics = {"score": scored[names[0]], **scored, **baselines(self, labels, groups)}
        for name in names:
            low, high = scores.interval(name, predicted, labels, resamples, groups)
            metrics[f"{name}_low"] = low
            metrics[f"{name}_high"] = high
        loss, baseline = self.losses(outcome)
        metrics["loss"] = loss
        metrics["loss_baseline"] = baseline
        metrics["examples"] = len(labels)
        return metrics

    def rows_of_parts(self, outcome: Outcome) -> dict[str, Numbers]:
        """Return the positions of the examples of each part that is scored by itself: a tenant, or all."""
        return {"all": np.arange(len(outcome.labels))}

    def of_parts(self, outcome: Outcome) -> list[OfPart]:
        """Return the examples of each part that is scored by itself."""
        return [OfPart(name, self, rows, outcome) for name, rows in self.rows_of_parts(outcome).items()]

    def predict_by_metric(self, outcome: Outcome) -> dict[str, Numbers]:
        """Return what is predicted, by the name of the metric that scores it."""
        return dict.fromkeys(self.row.metrics, self.predict(outcome))

    def baseline_by_metric(self, outcome: Outcome) -> dict[str, Numbers]:
        """Return what the constant baseline predicts, by the name of the metric for which it is the best constant."""
        _, labels, groups = collect_predictions(self, outcome)
        return best_constants(self, labels, groups)

    def parts(self, outcome: Outcome, resamples: int) -> tuple[Scores, dict[str, Scores]]:
        """Return the metrics of all examples, and of each part that is scored by itself."""
        metrics = self.metrics(outcome, resamples)
        return metrics, {"all": metrics}

    @abstractmethod
    def table(self, outcome: Outcome) -> Columns:
        """Return columns for each example: actual, predicted, and both as groups that a plot can count."""

    def by_class(self, outcome: Outcome) -> Sequence[tuple[str | float, ...]]:
        """Return a row of `scores.BY_CLASS` for each class or label; none if there are no common ones."""
        return ()


def choose_selection_metric(scoring: Scoring) -> str:
    """Return the score of the validation split that chooses the checkpoint: of texts, if the entry selects by them."""
    return "exact_match" if scoring.row.select else scoring.decides


def collect_predictions(scoring: Scoring, outcome: Outcome) -> tuple[Numbers, Numbers, Groups]:
    """Return what the metrics of an entry score: predictions, labels, and the groups that are scored as wholes."""
    groups = outcome.groups if scoring.row.group else None
    labels = scoring.extract_targets(outcome.labels, outcome.groups)
    return scoring.predict(outcome), labels, groups


def best_constants(scoring: Scoring, labels: Numbers, groups: Groups) -> dict[str, Numbers]:
    """Return the predictions of the best constant for each metric of an entry: for each, it may be another.

    It is the best on the very labels that are scored, so no constant that is chosen without them scores more.
    """
    from pipeline.tasks import scores

    best = dict[str, Numbers]()
    highest = Scores()
    for constant in scoring.constants(labels):
        predictions = np.full(labels.shape, constant)
        for name, value in scores.score(scoring.row.metrics, predictions, labels, groups).items():
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
