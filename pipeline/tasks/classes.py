"""A model chooses one of several classes.

A column holds them by number or name, a threshold or a comparison of two texts derives them from numbers, or they are
texts to choose from.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline.core.errors import UserError, nearest
from pipeline.params.labels import CHOSEN, COMPARED, RARER, Threshold
from pipeline.tasks.cells import Cells, plain_text, rounded
from pipeline.tasks.facts import Facts, missing
from pipeline.tasks.number import HIDDEN, IS_HIDDEN, NumberTask, finite
from pipeline.tasks.task import Columns, Numbers, Outcome, Task

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 12  # classes
RARE_SHARE, RARE_TEXTS = 0.1, 50  # a class with less of either is rare


class ClassesTask(Task):
    """Classes by number or name."""

    kind = "classes"
    target = "int64"
    can_balance = True

    @property
    def names(self) -> tuple[str, ...]:
        return self.label.names[::-1] if self.is_turned else self.label.names

    @property
    def is_turned(self) -> bool:
        """Whether f1 is about the first of two classes in the row, which then is the second output.

        Raises:
            UserError: if only the data say which class that is, and they were not read.
        """
        positive = getattr(self.label, "positive", None)  # which labels of classes have alone
        if positive is None:
            return False
        if positive == RARER:
            positive = self.facts.positive
            if positive is None:
                raise UserError(missing("which class is rarer"))
        return bool(self.label.names[0] == positive)

    def names_in(self, cells: Cells) -> Iterable[tuple[str, object]]:
        column = self.label.column
        return [] if isinstance(self.label, Threshold) else [(column, cells[column])]  # or else it holds a number

    def label_of(self, cells: Cells) -> Any:
        return class_of(cells[self.label.column], self.label)

    def facts_of_examples(self, train: pd.DataFrame) -> Facts:
        """Find the rarer one of two classes."""
        if getattr(self.label, "positive", None) != RARER:
            return self.facts
        first, second = np.bincount(train["label"], minlength=2)
        rarer = self.label.names[int(first >= second)]
        return self.facts.model_copy(update={"positive": rarer})

    def after_cut(self, examples: pd.DataFrame, split: str) -> tuple[pd.DataFrame, Counter[str]]:
        """Bring labels into the order of the outputs."""
        return examples.assign(label=1 - examples["label"]) if self.is_turned else examples, Counter()

    def lacks(self, train: pd.DataFrame) -> str:
        labels = np.array(train["label"].tolist())
        return "" if self.counted(labels).all() else f"no row of a class; rows per class: {self.listed(labels)}"

    def counted(self, labels: Numbers) -> Numbers:
        """Return the number of examples of each class."""
        return np.bincount(labels, minlength=len(self.names))

    def rare(self, labels: Numbers) -> str:
        few = [
            f"{name} {count:,} ({count / len(labels):.1%})"
            for name, count in zip(self.names, self.counted(labels), strict=True)
            if count < max(RARE_SHARE * len(labels), RARE_TEXTS)
        ]
        advice = "macro_f1 sees them, and train.class_weights: balanced gives them weight"
        return f"{some_of(few)}: {advice}" if few else ""

    @property
    def has_one_class_each(self) -> bool:
        return True

    def balanced(self, labels: Numbers) -> "Callable[[Tensor, Tensor], Tensor]":
        """Return the cross-entropy in which the classes of a whole split, whose labels these are, weigh the same.

        It is the plain mean of weight times loss over a batch. Divided by the sum of the batch's own weights, the loss
        would depend on which examples share a batch: a rare class would weigh less the smaller batches are.
        """
        import torch

        weights = torch.from_numpy(len(labels) / (len(self.names) * self.counted(labels))).float()

        def loss(outputs: "Tensor", wanted: "Tensor") -> "Tensor":  # (n, classes), (n,)
            each = torch.nn.functional.cross_entropy(outputs, wanted, reduction="none")
            return (weights.to(outputs.device)[wanted] * each).mean()

        return loss

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

    def constants(self, labels: Numbers) -> Iterable[Any]:
        """Return the classes that occur: of any other, a constant has the least of all scores."""
        return np.unique(labels)

    def losses(self, outcome: Outcome) -> tuple[float, float]:
        import torch
        from scipy import stats

        loss = torch.nn.functional.cross_entropy(outcome.outputs, torch.from_numpy(outcome.labels))  # in nats
        return float(loss), float(stats.entropy(np.bincount(outcome.labels)))

    def by_class(self, outcome: Outcome) -> Sequence[tuple[str | float, ...]]:
        from pipeline.tasks import scores

        return scores.by_class(self.names, self.of_examples(outcome), outcome.labels)

    def of_examples(self, outcome: Outcome) -> Numbers:
        """Return the predicted class of each example, also where several examples have one answer."""
        return self.predicted(outcome)

    def table(self, outcome: Outcome) -> Columns:
        both = {"actual": outcome.labels, "predicted": self.of_examples(outcome)}
        named = {column: [self.names[number] for number in numbers] for column, numbers in both.items()}
        # Two digits are what a confidence means; more of them differ between processors.
        confidence = [round(value, 2) for value in outcome.outputs.softmax(dim=1).amax(dim=1).tolist()]
        return {**named, **{f"{column}_group": values for column, values in named.items()}, "confidence": confidence}

    @classmethod
    def printed(cls, outputs: "Tensor", labels: Sequence[str] | None, thresholds: Sequence[float] = ()) -> Columns:
        shares, names = outputs.double().softmax(dim=1).numpy(), labels or ()
        return {"label": [names[at] for at in shares.argmax(axis=1)], **by_label(shares, names)}

    def says(self) -> str:
        return f"one of {len(self.names)} labels, {', '.join(self.names)}"

    def shown(self, labels: Numbers) -> str:
        names = self.names
        are_numbers = all(name.lstrip("-").isdecimal() for name in names) and len(names) > 2
        instead = f"low: {names[0]} and high: {names[-1]} in place of names, metrics: [pearson]"
        return f"{len(names)} classes: {self.listed(labels)}{f'; as a number: {instead}' if are_numbers else ''}"

    def listed(self, labels: Numbers) -> str:
        """Return the classes and how many examples each has."""
        return some_of([f"{name} {count:,}" for name, count in zip(self.names, self.counted(labels), strict=True)])


class PairsTask(ClassesTask):
    """Two classes of numbers: the first of two rated texts has the larger one, or the second.

    Pairs are formed within a split, so no text occurs in pairs of two splits. Hashes of the texts say which are paired,
    and in which order: this reveals nothing about the numbers, and the two classes are about equally frequent.
    """

    names = COMPARED
    target = "float64"  # of the examples that are paired

    @property
    def columns(self) -> tuple[str, ...]:
        return self.row.text[0], f"{self.row.text[0]}_pair"

    def names_in(self, cells: Cells) -> Iterable[tuple[str, object]]:
        return ()  # numbers that are compared

    def label_of(self, cells: Cells) -> Any:
        return NumberTask(self.row, self.facts).label_of(cells)

    def after_cut(self, examples: pd.DataFrame, split: str) -> tuple[pd.DataFrame, Counter[str]]:
        """Pair each text with the next one in the order of the hashes, unless their numbers are within the margin.

        A text is in up to two pairs, once as the first and once as the second; in test it is in at most one, so that
        pairs are as independent as texts. Of equal texts, only the first is used.
        """
        assert self.row.pairs is not None
        texts = examples.drop_duplicates("hash").sort_values("hash")
        step = 2 if split == "test" else 1
        first, second = (part.reset_index(drop=True) for part in (texts[:-1:step], texts[1::step]))
        difference = first["label"] - second["label"]
        label = (difference < 0).astype(np.int64)  # 0 if the first has the larger number, 1 if the second has
        pairs = pd.DataFrame({"text": first["text"], "text_pair": second["text"], "label": label})
        apart = difference.abs() >= self.row.pairs.margin
        return pairs[apart], Counter(within_margin=int((~apart).sum()), duplicate=len(examples) - len(texts))


class ChoicesTask(ClassesTask):
    """Texts to choose from: each is an example, right or wrong, and the likeliest of a row is the answer."""

    names = CHOSEN

    @property
    def has_one_class_each(self) -> bool:
        return False  # the examples of a row share an answer

    def predicted(self, outcome: Outcome) -> Numbers:
        outputs = outcome.outputs.numpy()
        return (outputs[:, 1] - outputs[:, 0])[self._members(outcome.groups)].argmax(axis=1)

    def known(self, labels: Numbers, groups: Numbers | None) -> Numbers:
        return labels[self._members(groups)].argmax(axis=1)

    def of_examples(self, outcome: Outcome) -> Numbers:
        groups, predicted = self._members(outcome.groups), np.zeros(len(outcome.labels), np.int64)
        predicted[groups[np.arange(len(groups)), self.predicted(outcome)]] = 1
        return predicted

    def _members(self, groups: Numbers | None) -> Numbers:  # (groups, choices)
        """Return the positions of the examples of each group; all groups have the same size."""
        assert groups is not None
        return np.argsort(groups, kind="stable").reshape(-1, len(self.row.choices))


def by_label(shares: Numbers, names: Sequence[str]) -> dict[str, list[float]]:
    """Return the probabilities of each label, (n, labels), in columns to print."""
    return {f"p({name})": [rounded(one, 6) for one in its] for name, its in zip(names, shares.T.tolist(), strict=True)}


def some_of(shown: Sequence[str]) -> str:
    """Return the first of many words, and how many more there are."""
    return ", ".join(shown[:SHOWN]) + (f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else "")


def whose(metric: str, task: Task) -> str:
    """Return of which class a metric is, as words after it; an empty text if it is of all."""
    if metric != "f1":
        return ""
    names = task.names or ClassesTask(task.row, task.facts).names
    return f" of {names[1]}"


def class_of(value: Any, label: Any) -> int | None:
    """Return the class of a value: by its number or name, or whether it is above a threshold; None within the margin.

    Raises:
        ValueError: if it is no class, or no number to compare.
    """
    if (above := getattr(label, "above", None)) is not None:
        number = finite(value)
        return None if abs(number - above) < label.margin else int(number > above)
    known, plain = _known(label.names), plain_text(value)
    if plain not in known:
        allowed = f"allowed: {', '.join(known)}{nearest(value, label.names)}"
        raise ValueError(IS_HIDDEN if plain == str(HIDDEN) else f"label {value!r} is not a class; {allowed}")
    return known[plain]


@cache
def _known(names: tuple[str, ...]) -> dict[str, int]:
    known = dict[str, int]()
    for number, name in enumerate(names):
        if known.setdefault(plain_text(name), number) != number:
            same = names[known[plain_text(name)]]
            raise ValueError(f"label.names: {same!r} and {name!r} would be one class; name each in another way")
    # Names such as "1" ... "5" are values in the file, so then a position in the list is not accepted as well.
    are_numbers = any(name.lstrip("-").isdecimal() for name in known)
    return known if are_numbers else known | {str(number): number for number in range(len(names))}
