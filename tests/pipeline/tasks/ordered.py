"""A task type that the pipeline does not have: classes in an order. An output is positive above its limit."""

import numpy as np
import torch
from sklearn.metrics import cohen_kappa_score
from torch.nn import functional as F

from pipeline import tasks
from pipeline.params import labels
from pipeline.tasks import scores
from pipeline.tasks.description import Description
from pipeline.tasks.head import Head
from pipeline.tasks.preprocessing import Preprocessor
from pipeline.tasks.scoring import Scoring


class Ordered(labels.LabelSpec):
    identified_by = frozenset({"order"})
    allowed_metrics = ("kappa",)

    order: tuple[str, ...]


class OrderedPreprocessor(Preprocessor):
    target = "int64"

    def label_of(self, cells):
        return self.label.order.index(cells[self.label.column])


class OrderedHead(Head):
    @property
    def names(self):
        return self.label.order

    @classmethod
    def width(cls, labels):
        return len(labels) - 1

    def fields(self):
        return {"num_labels": self.width(self.names)}

    def loss(self):
        return above_limits


class OrderedScoring(Scoring):
    def predict(self, outcome):
        return (outcome.outputs > 0).sum(dim=1).numpy()

    def constants(self, labels):
        return range(len(self.label.order))

    def losses(self, outcome):
        limits = np.arange(outcome.outputs.shape[1])
        shares = torch.from_numpy((outcome.labels[:, None] > limits).mean(axis=0))
        loss = above_limits(outcome.outputs, torch.from_numpy(outcome.labels))
        return loss.item(), F.binary_cross_entropy(shares, shares).item()

    def table(self, outcome):
        levels = {"actual": outcome.labels, "predicted": self.predict(outcome)}
        columns = {}
        for name, numbers in levels.items():
            columns[name] = columns[f"{name}_group"] = [self.label.order[number] for number in numbers]
        return columns


class OrderedDescription(Description):
    def task_info(self, tokenizer):
        return super().task_info(tokenizer) | {"labels": self.label.order}

    @classmethod
    def to_columns(cls, outputs, labels, thresholds=()):
        return {"level": [labels[number] for number in (outputs > 0).sum(axis=1)]}

    def predicts(self):
        return f"a level from {self.label.order[0]} to {self.label.order[-1]}"


def above_limits(outputs, labels):
    limits = torch.arange(outputs.shape[1], device=outputs.device)
    return F.binary_cross_entropy_with_logits(outputs, (labels[:, None] > limits).to(outputs.dtype))


def kappa(labels, predictions):
    return float(np.nan_to_num(cohen_kappa_score(labels, predictions, weights="quadratic")))


def register(patch):
    """Have the pipeline know the task type."""
    task_type = tasks.TaskType("ordered", OrderedPreprocessor, OrderedHead, OrderedScoring, OrderedDescription)
    patch.setattr(labels, "FORMS", [Ordered, *labels.FORMS])
    patch.setitem(tasks.TASKS, Ordered, task_type)
    patch.setitem(scores.EXAMPLES, "kappa", kappa)
