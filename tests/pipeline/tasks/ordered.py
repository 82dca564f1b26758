"""A kind of task that the pipeline does not have: classes in an order. An output for each limit says: above, or not."""

import numpy as np
import torch
from sklearn.metrics import cohen_kappa_score
from torch.nn import functional as F

from pipeline import tasks
from pipeline.params import labels
from pipeline.tasks import scores


class Ordered(labels.Form):
    told_by = frozenset({"order"})
    scored_by = ("kappa",)

    order: tuple[str, ...]


class OrderedTask(tasks.Task):
    kind = "ordered"
    target = "int64"

    @property
    def names(self):
        return self.row.label.order

    def label_of(self, cells):
        return self.names.index(cells[self.row.label.column])

    @classmethod
    def width(cls, labels):
        return len(labels) - 1

    def head(self):
        return {"num_labels": self.width(self.names)}

    def loss(self):
        def above_limits(outputs, labels):
            limits = torch.arange(outputs.shape[1], device=outputs.device)
            return F.binary_cross_entropy_with_logits(outputs, (labels[:, None] > limits).to(outputs.dtype))

        return above_limits

    def predicted(self, outcome):
        return (outcome.outputs > 0).sum(dim=1).numpy()

    def constants(self, labels):
        return range(len(self.names))

    def losses(self, outcome):
        shares = torch.from_numpy((outcome.labels[:, None] > np.arange(outcome.outputs.shape[1])).mean(axis=0))
        found = self.loss()(outcome.outputs, torch.from_numpy(outcome.labels))
        return found.item(), F.binary_cross_entropy(shares, shares).item()

    def table(self, outcome):
        both = {"actual": outcome.labels, "predicted": self.predicted(outcome)}
        return {f"{name}{end}": [self.names[at] for at in both[name]] for name in both for end in ("", "_group")}

    @classmethod
    def printed(cls, outputs, labels, thresholds=()):
        return {"level": [labels[at] for at in (outputs > 0).sum(dim=1)]}

    def says(self):
        return f"a level from {self.names[0]} to {self.names[-1]}"


def kappa(labels, predictions):
    return float(np.nan_to_num(cohen_kappa_score(labels, predictions, weights="quadratic")))


def register(patch):
    """Have the pipeline know the kind."""
    patch.setattr(labels, "FORMS", [Ordered, *labels.FORMS])
    patch.setitem(tasks.TASKS, Ordered, OrderedTask)
    patch.setitem(scores.EXAMPLES, "kappa", kappa)
