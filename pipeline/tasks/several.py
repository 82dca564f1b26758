"""A text has any number of labels, or none: a model says of each whether it applies, by a threshold of its own."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from pipeline.core.errors import nearest
from pipeline.tasks import sums
from pipeline.tasks.cells import Cells, is_missing, plain_text
from pipeline.tasks.classes import SHOWN, ClassesTask, by_label
from pipeline.tasks.task import Columns, Numbers, Outcome

if TYPE_CHECKING:
    from torch import Tensor

JOINED = "; "  # labels of a text, where they are printed
OTHERS = "others"  # combinations of labels that a plot does not show one by one
FEW = 10  # texts of the validation split
TRIED = np.arange(1, 100) / 100  # thresholds


class SeveralTask(ClassesTask):
    """Labels that are right or wrong one by one; examples have a 1 for each that applies, else a 0."""

    kind = "several"
    target = "object"  # tuples of these numbers
    has_thresholds = True
    has_one_class_each = False

    def names_in(self, cells: Cells) -> Iterable[tuple[str, object]]:
        column = self.label.column
        return [(column, part) for part in parts_in(cells[column], self.label.separator)]

    def prepared(self, cells: Cells) -> Cells:
        # An empty cell says that no label applies.
        column = self.label.column
        labels = labels_in(cells[column], self.label.separator)
        return {**cells, column: labels}

    def label_of(self, cells: Cells) -> Any:
        labels: tuple[str, ...] = cells[self.label.column]
        names = self.names
        for label in labels:
            if label not in names:
                raise ValueError(f"label {label!r} is none of {', '.join(names)}{nearest(label, names)}")
        return _applying(labels, names)

    def counted(self, labels: Numbers) -> Numbers:
        return labels.sum(axis=0).astype(np.int64)

    def head(self) -> dict[str, Any]:
        return super().head() | {"problem_type": "multi_label_classification"}

    def balanced(self, labels: Numbers) -> "Callable[[Tensor, Tensor], Tensor]":
        """Return the loss in which, for each label, texts of a whole split with it and those without weigh the same."""
        import torch

        with_label = self.counted(labels)
        without_label = (len(labels) - with_label).clip(min=1)  # where every text has a label, no text needs the other
        if_applies = torch.from_numpy(len(labels) / (2 * with_label)).float()
        if_not = torch.from_numpy(len(labels) / (2 * without_label)).float()

        def loss(outputs: "Tensor", wanted: "Tensor") -> "Tensor":  # (n, labels), (n, labels)
            weights = torch.where(wanted > 0, if_applies.to(outputs.device), if_not.to(outputs.device))
            return torch.nn.functional.binary_cross_entropy_with_logits(outputs, wanted, weight=weights)

        return loss

    def settled(self, validation: Outcome) -> Self:
        """Choose for each label the threshold with the best F1: of several such the one in their middle.

        Labels that too few texts have share one, which would else be that of a text or two.
        """
        actual = validation.labels
        predicted = shares_of(validation.outputs)[:, :, None] >= TRIED  # (examples, labels, thresholds)
        texts = actual.sum(axis=0)
        answers = predicted.sum(axis=0)
        hits = (predicted * actual[:, :, None]).sum(axis=0)
        thresholds = np.empty(len(texts))
        few = texts < FEW
        for labels in (few, *np.eye(len(texts), dtype=bool)[~few]):
            f1 = sums.f1(hits[labels].sum(axis=0), texts[labels].sum(), answers[labels].sum(axis=0))
            best = TRIED[f1 == f1.max()]
            thresholds[labels] = best[(len(best) - 1) // 2]
        return self.with_thresholds(tuple(thresholds.tolist()))

    def predicted(self, outcome: Outcome) -> Numbers:
        assert self.facts.thresholds is not None, "the validation split says from which probability a label applies"
        return (shares_of(outcome.outputs) >= self.facts.thresholds).astype(np.int64)

    def known(self, labels: Numbers, groups: Numbers | None) -> Numbers:
        return labels.astype(np.int64)

    def constants(self, labels: Numbers) -> Iterable[Any]:
        """Yield the most frequent label, the two most frequent, and so on.

        Of as many labels, micro_f1 has the most hits with the most frequent ones; macro_f1 gains with each that occurs.
        """
        constant = np.zeros(len(self.names), np.int64)
        for label in np.argsort(-self.counted(labels), kind="stable"):
            constant[label] = 1
            yield constant.copy()

    def losses(self, outcome: Outcome) -> tuple[float, float]:
        import torch

        wanted = torch.from_numpy(outcome.labels).float()
        shares = wanted.mean(dim=0)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(outcome.outputs, wanted)  # in nats
        baseline = torch.nn.functional.binary_cross_entropy(shares, shares)
        return float(loss), float(baseline)

    def table(self, outcome: Outcome) -> Columns:
        actual = [joined(row, self.names) for row in outcome.labels]
        predicted = [joined(row, self.names) for row in self.predicted(outcome)]
        usual = {labels for labels, _ in Counter(actual).most_common(SHOWN)}
        return {
            "actual": actual,
            "predicted": predicted,
            "actual_group": [_group(labels, usual) for labels in actual],
            "predicted_group": [_group(labels, usual) for labels in predicted],
        }

    @classmethod
    def printed(cls, outputs: "Tensor", labels: Sequence[str] | None, thresholds: Sequence[float] = ()) -> Columns:
        shares = shares_of(outputs)
        names = labels or ()
        answers = [joined(row, names) for row in shares >= thresholds]
        return {"label": answers, **by_label(shares, names)}

    def says(self) -> str:
        question = f"which of {len(self.names)} labels apply"
        if self.facts.thresholds is None:
            return f"{question}, {', '.join(self.names)}"
        thresholds = zip(self.names, self.facts.thresholds, strict=True)
        each = ", ".join(f"{name} from {threshold:g}" for name, threshold in thresholds)
        return f"{question}, by their probabilities: {each}"

    def shown(self, labels: Numbers) -> str:
        of_texts = labels.sum(axis=1)
        without = np.count_nonzero(of_texts == 0)
        texts = f"{of_texts.sum() / len(labels):.2g} a text, {without:,} texts without"
        return f"several of {len(self.names)} labels: {self.listed(labels)}; {texts}"


def labels_in(cell: object, separator: str) -> tuple[str, ...]:
    """Return the labels in a cell: those of a list, or the parts of a text between separators; none of an empty one."""
    labels = (plain_text(part).strip() for part in parts_in(cell, separator))
    return tuple(label for label in labels if label)


def parts_in(cell: object, separator: str) -> Sequence[object]:
    """Return the items of a list, or the parts of a text between separators, as they are; none of an empty cell."""
    if is_missing(cell):
        return ()
    if isinstance(cell, list | tuple | np.ndarray):
        return list(cell)
    return str(cell).split(separator)


@cache  # many texts have the same labels, and memory has those once
def _applying(labels: tuple[str, ...], names: tuple[str, ...]) -> tuple[float, ...]:
    return tuple(float(name in labels) for name in names)


def shares_of(outputs: "Tensor") -> Numbers:  # (n, labels)
    """Return the probability of each label."""
    return outputs.double().sigmoid().numpy()


def joined(applies: Numbers, names: Sequence[str]) -> str:
    """Return the labels that apply, in one text."""
    labels = zip(names, applies, strict=True)
    return JOINED.join(name for name, is_right in labels if is_right)


def _group(labels: str, usual: set[str]) -> str:
    if labels not in usual:
        return OTHERS
    return labels or "none"
