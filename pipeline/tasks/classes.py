"""A model chooses one of several classes, which a column holds by number or name, or which a threshold derives."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline.core.errors import nearest
from pipeline.params.labels import RARER
from pipeline.tasks.cells import plain_text, refuse, rounded
from pipeline.tasks.number import HIDDEN, IS_HIDDEN, finite
from pipeline.tasks.outcome import Numbers, Outcome
from pipeline.tasks.task import Columns, Task

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 12  # classes
RARE_SHARE, RARE_TEXTS = 0.1, 50  # a class with less of either is rare


class ClassesTask(Task):
    """Classes by number or name."""

    kind = "classes"
    target = "int64"

    @property
    def names(self) -> tuple[str, ...]:
        return self.label.names[::-1] if self.is_turned else self.label.names

    @property
    def is_turned(self) -> bool:
        """Whether f1 is about the first of two classes in the row, which then is the second output."""
        positive = getattr(self.label, "positive", None)  # which labels of classes have alone
        return positive is not None and self.label.names[0] == (self.row.found if positive == RARER else positive)

    def targets(self, table: pd.DataFrame) -> pd.Series:
        return classes(table[self.label.column], self.label.names)

    def after_cut(self, examples: pd.DataFrame, split: str) -> tuple[pd.DataFrame, Counter[str]]:
        """Bring labels into the order of the outputs; of two classes, train says which one is rarer."""
        if split == "train" and getattr(self.label, "positive", None) == RARER:
            first, second = np.bincount(examples["label"], minlength=2)
            self.row._found = self.label.names[int(first >= second)]
        return examples.assign(label=1 - examples["label"]) if self.is_turned else examples, Counter()

    def lacks(self, train: pd.DataFrame) -> str:
        counts = self.counted(np.array(train["label"].tolist()))
        shown = ", ".join(f"{name} {count}" for name, count in zip(self.names, counts, strict=True))
        return "" if counts.all() else f"no row of a class; rows per class: {shown}"

    def counted(self, labels: Numbers) -> Numbers:
        """Return the number of examples of each class."""
        return np.bincount(labels, minlength=len(self.names))

    def rare(self, labels: Numbers) -> str:
        counts = self.counted(labels)
        few = [
            f"{name} {count:,} ({count / len(labels):.1%})"
            for name, count in zip(self.names, counts, strict=True)
            if count < max(RARE_SHARE * len(labels), RARE_TEXTS)
        ]
        if not few:
            return ""
        more = f" and {len(few) - SHOWN} more" if len(few) > SHOWN else ""
        advice = "macro_f1 sees them, and train.class_weights: balanced gives them weight"
        return f"{', '.join(few[:SHOWN])}{more}: {advice}"

    def balanced(self, labels: Numbers) -> "Callable[[Tensor, Tensor], Tensor]":
        """Return the cross-entropy in which all classes of some labels weigh the same."""
        import torch
        from torch.nn import functional as F

        weights = len(labels) / (len(self.names) * self.counted(labels))
        weight = torch.from_numpy(weights).float()
        return lambda outputs, wanted: F.cross_entropy(outputs, wanted, weight.to(outputs))

    def counts(self, labels: Numbers) -> dict[str, float]:
        shares = self.counted(labels) / len(labels)
        return {f"share_{name}": float(share) for name, share in zip(self.names, shares, strict=True)}

    def head(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.names),
            "problem_type": "single_label_classification",
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: number for number, name in enumerate(self.names)},
        }

    def predicted(self, outcome: Outcome) -> Numbers:
        return outcome.outputs.numpy().argmax(axis=1)

    def constant(self, labels: Numbers) -> Any:
        found, counts = np.unique(labels, return_counts=True)
        return found[counts.argmax()]

    def losses(self, outcome: Outcome) -> tuple[float, float]:
        import torch
        from scipy import stats
        from torch.nn import functional as F

        loss = F.cross_entropy(outcome.outputs, torch.from_numpy(outcome.labels))  # in nats
        return float(loss), float(stats.entropy(np.bincount(outcome.labels)))

    def of_examples(self, outcome: Outcome) -> Numbers:
        """Return the predicted class of each example, also where several examples have one answer."""
        return self.predicted(outcome)

    def by_class(self, outcome: Outcome) -> Sequence[tuple[str | float, ...]]:
        """Return the rows of `scores.by_class`."""
        from pipeline.tasks import scores

        return scores.by_class(self.names, self.of_examples(outcome), outcome.labels)

    def table(self, outcome: Outcome) -> Columns:
        both = {"actual": outcome.labels, "predicted": self.of_examples(outcome)}
        named = {column: [self.names[number] for number in numbers] for column, numbers in both.items()}
        # Two digits are what a confidence means; more of them differ between processors.
        confidence = [round(value, 2) for value in outcome.outputs.softmax(dim=1).amax(dim=1).tolist()]
        return {**named, **{f"{column}_group": values for column, values in named.items()}, "confidence": confidence}

    @classmethod
    def printed(cls, outputs: "Tensor", labels: Sequence[str] | None, thresholds: Sequence[float] = ()) -> Columns:
        shares = outputs.double().softmax(dim=1)
        names = list(labels or ())
        by_label = {f"p({name})": [rounded(one, 6) for one in shares[:, at].tolist()] for at, name in enumerate(names)}
        return {"label": [names[at] for at in shares.argmax(dim=1).tolist()], **by_label}

    def says(self) -> str:
        return f"one of {len(self.names)} labels, {', '.join(self.names)}"

    def shown(self, labels: Numbers) -> str:
        names, counts = self.names, Counter(self.names[label] for label in labels)
        listed = ", ".join(f"{name} {counts[name]:,}" for name in names[:SHOWN])
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        are_numbers = all(name.lstrip("-").isdecimal() for name in names) and len(names) > 2
        instead = f"low: {names[0]} and high: {names[-1]} in place of names, metrics: [pearson]"
        return f"{len(names)} classes: {listed}{more}{f'; as a number: {instead}' if are_numbers else ''}"


class ThresholdTask(ClassesTask):
    """Two classes of a number: not above a threshold, or above it."""

    def targets(self, table: pd.DataFrame) -> pd.Series:
        return over(table[self.label.column], self.label.above, self.label.margin)


def over(values: pd.Series, above: float, margin: float) -> pd.Series:
    """Return whether each number is above another, as 0 or 1; NaN within a margin around it."""
    numbers = finite(values)
    return (numbers > above).astype(float).mask((numbers - above).abs() < margin)


def whose(metric: str, task: Task) -> str:
    """Return of which class a metric is, as words after it; an empty text if it is of all."""
    return f" of {(task.names or ClassesTask(task.row).names)[1]}" if metric == "f1" else ""


def classes(values: pd.Series, names: Sequence[str]) -> pd.Series:
    """Return the class of each value, given by number or name; the first that is neither is refused with its line."""
    known = {plain_text(name): number for number, name in reversed([*enumerate(names)])}  # of equal names, the first
    allowed = list(names)
    # Names such as "1" ... "5" are values in the file, so then a position in the list is not accepted as well.
    if not any(name.lstrip("-").isdecimal() for name in known):
        known |= {str(number): number for number in range(len(names))}
        allowed += map(str, range(len(names)))
    plain = values.map(plain_text)
    numbers = plain.map(known)
    if str(HIDDEN) not in known:
        refuse(values, plain == str(HIDDEN), IS_HIDDEN)

    def not_a_class(value: object) -> str:
        return f"label {value!r} is not a class; allowed: {', '.join(allowed)}{nearest(value, names)}"

    refuse(values, numbers.isna(), not_a_class)
    return numbers
