"""Multi-label classification: a text has any number of labels, and each label has its own threshold."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import filterfalse
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.errors import nearest
from pipeline.tasks import sums
from pipeline.tasks.calibration import Classified, as_binary
from pipeline.tasks.cells import Cells, Names, is_missing, plain_text
from pipeline.tasks.classes import (
    ClassificationDescription,
    ClassificationHead,
    ClassificationPreprocessor,
    ClassificationScoring,
    by_label,
    count_classes,
    format_counts,
)
from pipeline.tasks.task import Columns, Numbers, Outcome
from pipeline.tasks.thresholds import TRIED, choose_best

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

JOINED = "; "  # labels of a text, where they are printed
SHOWN = 12  # combinations of labels that a plot shows one by one
OTHERS = "others"  # all other combinations
FEW = 10  # texts of the validation split


class MultiLabelPreprocessor(ClassificationPreprocessor):
    """Labels as a vector of 1 for each label that applies and 0 for all others."""

    target = "object"  # tuples of these numbers

    def names_in(self, cells: Cells) -> Names:
        column = self.label.column
        return [(column, part) for part in parts_in(cells[column], self.label.separator)]

    def parse_cells(self, cells: Cells) -> Cells:
        # No label applies to a text with an empty cell.
        column = self.label.column
        labels = labels_in(cells[column], self.label.separator)
        return {**cells, column: labels}

    def label_of(self, cells: Cells) -> Any:
        labels: tuple[str, ...] = cells[self.label.column]
        names = self.label.names
        for label in labels:
            if label not in names:
                raise ValueError(f"label {label!r} is none of {', '.join(names)}{nearest(label, names)}")
        return _encode_labels(labels, names)


class MultiLabelHead(ClassificationHead):
    """A head with one output per label, whose sigmoid is the probability that the label applies."""

    def fields(self) -> dict[str, Any]:
        return super().fields() | {"problem_type": "multi_label_classification"}

    def collect_logits(self, outcome: Outcome) -> Sequence[Classified]:
        columns = zip(outcome.outputs.numpy().T, outcome.labels.T, strict=True)
        return [as_binary(logits, applies) for logits, applies in columns]

    def build_balanced_loss(self, labels: Numbers) -> "Callable[[Tensor, Tensor], Tensor]":
        """Return the loss in which, for each label, a split's texts with and without it have equal total weight."""
        import torch

        with_label = count_classes(labels, self.names)
        without_label = (len(labels) - with_label).clip(min=1)  # where every text has a label, no text needs the other
        if_applies = torch.from_numpy(len(labels) / (2 * with_label)).float()
        if_not = torch.from_numpy(len(labels) / (2 * without_label)).float()

        def loss(outputs: "Tensor", wanted: "Tensor") -> "Tensor":  # (n, labels), (n, labels)
            weights = torch.where(wanted > 0, if_applies.to(outputs.device), if_not.to(outputs.device))
            return torch.nn.functional.binary_cross_entropy_with_logits(outputs, wanted, weight=weights)

        return loss


class MultiLabelScoring(ClassificationScoring):
    """Predicts the labels whose probabilities reach their thresholds."""

    has_thresholds = True
    has_one_class_each = False

    def best_thresholds(self, validation: Outcome) -> tuple[float, ...]:
        """Return for each label the threshold with the best F1: the middle one of ties.

        Labels with too few texts share a threshold, which would otherwise depend on one or two texts.
        """
        actual = validation.labels
        predicted = shares_of(validation.outputs.numpy())[:, :, None] >= TRIED  # (examples, labels, thresholds)
        texts = actual.sum(axis=0)
        answers = predicted.sum(axis=0)
        hits = (predicted * actual[:, :, None]).sum(axis=0)
        few = texts < FEW
        single = np.eye(len(texts), dtype=bool)[~few]
        thresholds = np.empty(len(texts))
        for labels in (few, *single):
            counts = (
                hits[labels].sum(axis=0),
                texts[labels].sum(),
                answers[labels].sum(axis=0),
            )
            thresholds[labels] = choose_best(sums.f1(*counts))
        return tuple(thresholds.tolist())

    def predict(self, outcome: Outcome) -> Numbers:
        thresholds = self.facts.thresholds
        assert thresholds is not None, "a label applies from a probability that the validation split determines"
        return (shares_of(outcome.outputs.numpy()) >= thresholds).astype(np.int64)

    def extract_targets(self, labels: Numbers, groups: Numbers | None) -> Numbers:
        return labels.astype(np.int64)

    def constants(self, labels: Numbers) -> Iterable[Any]:
        """Yield the most frequent label, the two most frequent, and so on.

        For a given number of labels, the most frequent ones give the best micro_f1; macro_f1 gains with each label that
        occurs.
        """
        counts = labels.sum(axis=0).astype(np.int64)
        constant = np.zeros(len(counts), np.int64)
        for label in np.argsort(-counts, kind="stable"):
            constant[label] = 1
            yield constant.copy()

    def losses(self, outcome: Outcome) -> tuple[float, float]:
        import torch

        wanted = torch.from_numpy(outcome.labels).float()
        shares = wanted.mean(dim=0)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(outcome.outputs, wanted)  # unit: nats
        baseline = torch.nn.functional.binary_cross_entropy(shares, shares)
        return float(loss), float(baseline)

    def table(self, outcome: Outcome) -> Columns:
        names = self.names
        actual = [format_labels(row, names) for row in outcome.labels]
        predicted = [format_labels(row, names) for row in self.predict(outcome)]
        usual = {labels for labels, _ in Counter(actual).most_common(SHOWN)}
        return {
            "actual": actual,
            "predicted": predicted,
            "actual_group": [_group(labels, usual) for labels in actual],
            "predicted_group": [_group(labels, usual) for labels in predicted],
        }


class MultiLabelDescription(ClassificationDescription):
    """Describes labels by name with their thresholds."""

    def card(self) -> dict[str, Any]:
        return {"is_multi_label": True}

    def task_info(self, tokenizer: "PreTrainedTokenizerBase | None") -> dict[str, Any]:
        return super().task_info(tokenizer) | {"threshold": None, "thresholds": self.facts.thresholds}

    @classmethod
    def to_columns(cls, outputs: Numbers, labels: Sequence[str] | None, thresholds: Sequence[float] = ()) -> Columns:
        shares = shares_of(outputs)
        names = labels or ()
        answers = [format_labels(row, names) for row in shares >= thresholds]
        return {"label": answers, **by_label(shares, names)}

    def predicts(self) -> str:
        names = self.names
        question = f"which of {len(names)} labels apply"
        if self.facts.thresholds is None:
            return f"{question}, {', '.join(names)}"
        thresholds = zip(names, self.facts.thresholds, strict=True)
        each = ", ".join(f"{name} from {threshold:g}" for name, threshold in thresholds)
        return f"{question}, by their probabilities: {each}"

    def of_data(self, labels: Numbers) -> str:
        names = self.names
        of_texts = labels.sum(axis=1)
        without = np.count_nonzero(of_texts == 0)
        texts = f"{of_texts.sum() / len(labels):.2g} a text, {without:,} texts without"
        return f"several of {len(names)} labels: {format_counts(labels, names)}; {texts}"


def labels_in(cell: object, separator: str) -> tuple[str, ...]:
    """Return the labels in a cell: a list, or the parts of a text between separators; an empty cell has none."""
    labels = (plain_text(part).strip() for part in parts_in(cell, separator))
    return tuple(label for label in labels if label)


def parts_in(cell: object, separator: str) -> Sequence[object]:
    """Return the items of a list without nulls, or the parts of a text between separators; an empty cell has none."""
    if is_missing(cell):
        return ()
    if isinstance(cell, list | tuple | np.ndarray):
        filled = filterfalse(is_missing, cell)
        return list(filled)
    return str(cell).split(separator)


@cache  # many texts have the same labels, and memory has those once
def _encode_labels(labels: tuple[str, ...], names: tuple[str, ...]) -> tuple[float, ...]:
    return tuple(float(name in labels) for name in names)


def shares_of(outputs: Numbers) -> Numbers:  # (n, labels)
    """Return the probability of each label."""
    from scipy.special import expit

    return expit(outputs.astype(np.float64))


def format_labels(applies: Numbers, names: Sequence[str]) -> str:
    """Join the labels that apply in one text."""
    labels = zip(names, applies, strict=True)
    return JOINED.join(name for name, is_right in labels if is_right)


def _group(labels: str, usual: set[str]) -> str:
    if labels not in usual:
        return OTHERS
    return labels or "none"
