"""A text has any number of labels, or none: a model says of each whether it applies, by a threshold of its own."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from pipeline.core.errors import nearest
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

    @property
    def has_one_class_each(self) -> bool:
        return False

    def names_in(self, cells: Cells) -> Iterable[tuple[str, object]]:
        column = self.label.column
        return [(column, part) for part in parts_in(cells[column], self.label.separator)]

    def prepared(self, cells: Cells) -> Cells:
        # An empty cell says that no label applies.
        return {**cells, self.label.column: labels_in(cells[self.label.column], self.label.separator)}

    def label_of(self, cells: Cells) -> Any:
        labels, names = cells[self.label.column], self.names
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
        actual = validation.labels[:, :, None]
        said = shares_of(validation.outputs)[:, :, None] >= TRIED  # (examples, labels, thresholds)
        texts, answers, hits = actual.sum(axis=0)[:, 0], said.sum(axis=0), (said * actual).sum(axis=0)
        few, found = texts < FEW, np.empty(len(texts))
        for labels in (few, *np.eye(len(texts), dtype=bool)[~few]):
            f1 = 2 * hits[labels].sum(axis=0) / (texts[labels].sum() + answers[labels].sum(axis=0)).clip(min=1)
            best = TRIED[f1 == f1.max()]
            found[labels] = best[(len(best) - 1) // 2]
        return self.with_facts(self.facts.model_copy(update={"thresholds": tuple(found.tolist())}))

    def predicted(self, outcome: Outcome) -> Numbers:
        assert self.facts.thresholds is not None, "the validation split says from which probability a label applies"
        return (shares_of(outcome.outputs) >= self.facts.thresholds).astype(np.int64)

    def known(self, labels: Numbers, groups: Numbers | None) -> Numbers:
        return labels.astype(np.int64)

    def constants(self, labels: Numbers) -> Iterable[Any]:
        """Return the most frequent label, the two most frequent, and so on.

        Of as many labels, micro_f1 has the most hits with the most frequent ones; macro_f1 gains with each that occurs.
        """
        order = np.argsort(-self.counted(labels), kind="stable")
        return [np.isin(np.arange(len(order)), order[:count]).astype(np.int64) for count in range(1, 1 + len(order))]

    def losses(self, outcome: Outcome) -> tuple[float, float]:
        import torch

        wanted = torch.from_numpy(outcome.labels).float()
        shares = wanted.mean(dim=0)
        found = torch.nn.functional.binary_cross_entropy_with_logits(outcome.outputs, wanted)  # in nats
        return float(found), float(torch.nn.functional.binary_cross_entropy(shares, shares))

    def table(self, outcome: Outcome) -> Columns:
        both = {"actual": outcome.labels, "predicted": self.predicted(outcome)}
        named = {column: [said(row, self.names) for row in rows] for column, rows in both.items()}
        usual = {one for one, _ in Counter(named["actual"]).most_common(SHOWN)}
        grouped = {column: [one if one in usual else OTHERS for one in cells] for column, cells in named.items()}
        return {**named, **{f"{column}_group": [one or "none" for one in cells] for column, cells in grouped.items()}}

    @classmethod
    def printed(cls, outputs: "Tensor", labels: Sequence[str] | None, thresholds: Sequence[float] = ()) -> Columns:
        shares, names = shares_of(outputs), labels or ()
        return {"label": [said(row, names) for row in shares >= thresholds], **by_label(shares, names)}

    def says(self) -> str:
        if self.facts.thresholds is None:
            return f"which of {len(self.names)} labels apply, {', '.join(self.names)}"
        each = ", ".join(f"{name} from {at:g}" for name, at in zip(self.names, self.facts.thresholds, strict=True))
        return f"which of {len(self.names)} labels apply, by their probabilities: {each}"

    def shown(self, labels: Numbers) -> str:
        texts = f"{labels.sum() / len(labels):.2g} a text, {int((labels.sum(axis=1) == 0).sum()):,} texts without"
        return f"several of {len(self.names)} labels: {self.listed(labels)}; {texts}"


def labels_in(cell: object, separator: str) -> tuple[str, ...]:
    """Return the labels in a cell: those of a list, or the parts of a text between separators; none of an empty one."""
    return tuple(found for part in parts_in(cell, separator) if (found := plain_text(part).strip()))


def parts_in(cell: object, separator: str) -> Sequence[object]:
    """Return the items of a list, or the parts of a text between separators, as they are; none of an empty cell."""
    if is_missing(cell):
        return ()
    return list(cell) if isinstance(cell, list | tuple | np.ndarray) else str(cell).split(separator)


@cache  # many texts have the same labels, and memory has those once
def _applying(labels: tuple[str, ...], names: tuple[str, ...]) -> tuple[float, ...]:
    return tuple(float(name in labels) for name in names)


def shares_of(outputs: "Tensor") -> Numbers:  # (n, labels)
    """Return the probability of each label."""
    return outputs.double().sigmoid().numpy()


def said(applies: Numbers, names: Sequence[str]) -> str:
    """Return the labels that apply, in one text."""
    return JOINED.join(name for name, one in zip(names, applies, strict=True) if one)
