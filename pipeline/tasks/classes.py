"""Classification: a model chooses one of several classes.

A column has them by number or name, a threshold or a comparison of two texts derives them from numbers, or they are
texts to choose from.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lsr_onnx.errors import some_of
from pipeline.core.errors import UserError, nearest
from pipeline.params.dataset_entry import DatasetEntry
from pipeline.params.labels import CHOSEN, COMPARED, RARER, Threshold
from pipeline.params.sources import rename_fields
from pipeline.tasks.calibration import Classified
from pipeline.tasks.cells import Cells, Names, plain_text, round_significant
from pipeline.tasks.description import Description
from pipeline.tasks.facts import Facts, missing
from pipeline.tasks.head import Head
from pipeline.tasks.number import HIDDEN, IS_HIDDEN, finite, number_in
from pipeline.tasks.preprocessing import Preprocessor
from pipeline.tasks.scoring import Scoring
from pipeline.tasks.task import Columns, Groups, Kept, Numbers, Outcome, Part, Scores
from pipeline.tasks.thresholds import TRIED, choose_best

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

# A class with less of either is rare.
RARE_SHARE = 0.1
RARE_TEXTS = 50
ROUNDING = 4 * np.finfo(np.float64).eps  # share of the larger of two numbers by which their difference may be off


def names_of(entry: DatasetEntry, facts: Facts) -> tuple[str, ...]:
    """Return the classes or labels of an entry in the order of the outputs.

    Raises:
        UserError: if only the data determine the order, and they were not read.
    """
    if entry.choices:
        return CHOSEN
    if entry.pairs is not None:
        return COMPARED
    label: Any = entry.label
    names: tuple[str, ...] = label.names
    if swaps_classes(entry, facts):
        return names[::-1]
    return names


def swaps_classes(entry: DatasetEntry, facts: Facts) -> bool:
    """Return whether the positive class is listed first, so that classes are swapped and it becomes output 1.

    Raises:
        UserError: if only the data determine the positive class, and they were not read.
    """
    label: Any = entry.label
    positive = getattr(label, "positive", None)  # labels of other types have no positive class
    if positive is None:
        return False
    if positive == RARER:
        positive = facts.positive
        if positive is None:
            raise UserError(missing("which class is rarer"))
    return bool(label.names[0] == positive)


class OfClasses(Part):
    """A part of a task with classes or labels."""

    @property
    def names(self) -> tuple[str, ...]:
        """The classes or labels in the order of the outputs."""
        return names_of(self.entry, self.facts)


def count_classes(labels: Numbers, names: Sequence[str]) -> Numbers:
    """Return the number of examples of each class, or with each label."""
    if labels.ndim == 2:
        return labels.sum(axis=0).astype(np.int64)
    return np.bincount(labels, minlength=len(names))


def format_counts(labels: Numbers, names: Sequence[str]) -> str:
    """Format the number of examples of each class."""
    counts = count_classes(labels, names)
    shown = list[str]()
    for name, count in zip(names, counts, strict=True):
        shown.append(f"{name} {count:,}")
    return some_of(shown)


class ClassificationPreprocessor(Preprocessor):
    """Classes by number or name."""

    target = "int64"

    def names_in(self, cells: Cells) -> Names:
        if isinstance(self.label, Threshold):  # the column holds a number
            return []
        column = self.label.column
        return [(column, cells[column])]

    def label_of(self, cells: Cells) -> Any:
        value = cells[self.label.column]
        return class_of(value, self.label)

    def facts_of_examples(self, train: pd.DataFrame) -> Facts:
        """Find the rarer one of two classes."""
        if getattr(self.label, "positive", None) != RARER:
            return self.facts
        first, second = np.bincount(train["label"], minlength=2)
        rarer = self.label.names[int(first >= second)]
        return self.facts.model_copy(update={"positive": rarer})

    def finish_split(self, examples: pd.DataFrame, split: str) -> Kept:
        """Reorder labels to the order of the outputs."""
        if swaps_classes(self.entry, self.facts):
            examples = examples.assign(label=1 - examples["label"])
        return examples, Counter()

    def find_train_problem(self, train: pd.DataFrame) -> str:
        labels = np.array(train["label"].tolist())
        names = names_of(self.entry, self.facts)
        if count_classes(labels, names).all():
            return ""
        return f"no row of a class; rows per class: {format_counts(labels, names)}"


class PairwiseComparisonPreprocessor(ClassificationPreprocessor):
    """Two classes from numbers: whether the first or the second of two rated texts has the larger one.

    Pairs are formed within a split, so no text occurs in pairs of two splits. Hashes of the texts determine which texts
    are paired, and in which order: this reveals nothing about the numbers, and the two classes are about equally
    frequent.
    """

    target = "float64"  # target of the examples that are paired

    def names_in(self, cells: Cells) -> Names:
        return ()  # numbers that are compared

    def label_of(self, cells: Cells) -> Any:
        return number_in(cells, self.label)

    def finish_split(self, examples: pd.DataFrame, split: str) -> Kept:
        """Pair each text with the next one in the order of the hashes, unless their numbers are within the margin.

        A text is in up to two pairs, once as the first and once as the second; in test it is in at most one, so that
        pairs are as independent as texts. Among equal texts, only the first is used.
        """
        assert self.entry.pairs is not None
        texts = examples.drop_duplicates("hash").sort_values("hash")
        step = 2 if split == "test" else 1
        first = texts[:-1:step].reset_index(drop=True)
        second = texts[1::step].reset_index(drop=True)
        difference = first["label"] - second["label"]
        is_second_larger = difference < 0
        columns = {
            "text": first["text"],
            "text_pair": second["text"],
            "label": is_second_larger.astype(np.int64),
        }
        pairs = pd.DataFrame(columns)
        is_near = _are_near(first["label"], second["label"], self.entry.pairs.margin)
        kept = pairs[~is_near]
        left_out = Counter(
            within_margin=len(pairs) - len(kept),
            duplicate=len(examples) - len(texts),
        )
        return kept, left_out


class ClassificationHead(OfClasses, Head):
    """A head with one output per class."""

    can_balance = True
    has_probabilities = True

    def fields(self) -> dict[str, Any]:
        names = self.names
        return {
            "num_labels": len(names),
            "problem_type": "single_label_classification",
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
        }

    def collect_logits(self, outcome: Outcome) -> Sequence[Classified]:
        logits = outcome.outputs.numpy()
        return [Classified(logits, outcome.labels)]

    def build_balanced_loss(self, labels: Numbers) -> "Callable[[Tensor, Tensor], Tensor]":
        """Return the cross-entropy weighted so that all classes of a split with these labels have equal total weight.

        It is the plain mean of weight times loss over a batch. If it were divided by the sum of the batch's own
        weights, the loss would depend on which examples share a batch: a rare class would have less weight in smaller
        batches.
        """
        import torch

        counts = count_classes(labels, self.names)
        of_classes = len(labels) / (len(counts) * counts)
        weights = torch.from_numpy(of_classes).float()

        def loss(outputs: "Tensor", wanted: "Tensor") -> "Tensor":  # (n, classes), (n,)
            losses = torch.nn.functional.cross_entropy(outputs, wanted, reduction="none")
            on_device = weights.to(outputs.device)
            weighted = on_device[wanted] * losses
            return weighted.mean()

        return loss


class ClassificationScoring(OfClasses, Scoring):
    """The likeliest class of each example."""

    has_one_class_each = True

    def best_thresholds(self, validation: Outcome) -> tuple[float, ...] | None:
        """Return the second class's probability from which on it is predicted: the best by `tune_threshold`, if set."""
        from pipeline.tasks import scores

        metric = getattr(self.label, "tune_threshold", None)
        if metric is None:
            return None
        score = scores.EXAMPLES[metric]
        shares = shares_of_classes(validation.outputs.numpy())
        by_threshold = list[float]()
        for threshold in TRIED:
            predicted = _choose_by_threshold(shares, threshold)
            by_threshold.append(score(validation.labels, predicted))
        best = choose_best(np.array(by_threshold))
        return (best,)

    def predict(self, outcome: Outcome) -> Numbers:
        outputs = outcome.outputs.numpy()
        if self.facts.thresholds is None:
            return outputs.argmax(axis=1)
        shares = shares_of_classes(outputs)
        return _choose_by_threshold(shares, self.facts.thresholds[0])

    def of_examples(self, outcome: Outcome) -> Numbers:
        """Return the predicted class of each example, even if examples are scored in groups."""
        return self.predict(outcome)

    def constants(self, labels: Numbers) -> Iterable[Any]:
        """Return the classes that occur: any other constant has the lowest score."""
        return np.unique(labels)

    def losses(self, outcome: Outcome) -> tuple[float, float]:
        import torch
        from scipy import stats

        labels = torch.from_numpy(outcome.labels)
        loss = torch.nn.functional.cross_entropy(outcome.outputs, labels)  # unit: nats
        entropy = stats.entropy(np.bincount(outcome.labels))
        return float(loss), float(entropy)

    def by_class(self, outcome: Outcome) -> Sequence[tuple[str | float, ...]]:
        from pipeline.tasks import scores

        return scores.by_class(self.names, self.of_examples(outcome), outcome.labels)

    def table(self, outcome: Outcome) -> Columns:
        names = self.names
        actual = [names[number] for number in outcome.labels]
        answers = self.of_examples(outcome)
        predicted = [names[number] for number in answers]
        shares = outcome.outputs.softmax(dim=1).numpy()
        of_answers = np.take_along_axis(shares, answers[:, None], axis=1)
        confidence = of_answers[:, 0].tolist()
        return {
            "actual": actual,
            "predicted": predicted,
            "actual_group": actual,
            "predicted_group": predicted,
            # Two digits are what a confidence means; more of them differ between processors.
            "confidence": [round(value, 2) for value in confidence],
        }


class MultipleChoiceScoring(ClassificationScoring):
    """Multiple choice: each choice is an example, right or wrong, and the likeliest choice of a row is the answer."""

    has_one_class_each = False  # the examples of a row share an answer

    def predict(self, outcome: Outcome) -> Numbers:
        wrong, right = outcome.outputs.numpy().T
        leads = right - wrong
        members = _members(outcome.groups, len(self.entry.choices))
        return leads[members].argmax(axis=1)

    def extract_targets(self, labels: Numbers, groups: Groups) -> Numbers:
        members = _members(groups, len(self.entry.choices))
        return labels[members].argmax(axis=1)

    def of_examples(self, outcome: Outcome) -> Numbers:
        members = _members(outcome.groups, len(self.entry.choices))
        groups = np.arange(len(members))
        chosen = members[groups, self.predict(outcome)]
        predicted = np.zeros(len(outcome.labels), np.int64)
        predicted[chosen] = 1
        return predicted


def _members(groups: Groups, choices: int) -> Numbers:  # (groups, choices)
    """Return the positions of the examples of each group; all groups have as many examples as there are choices."""
    assert groups is not None
    order = np.argsort(groups, kind="stable")
    return order.reshape(-1, choices)


class ClassificationDescription(OfClasses, Description):
    """Describes classes by name and number of examples."""

    def task_info(self, tokenizer: "PreTrainedTokenizerBase | None") -> dict[str, Any]:
        thresholds = self.facts.thresholds
        own = {
            "labels": self.names,
            "threshold": thresholds[0] if thresholds else None,
            "thresholds": None,
        }
        return super().task_info(tokenizer) | own

    @classmethod
    def to_columns(cls, outputs: Numbers, labels: Sequence[str] | None, thresholds: Sequence[float] = ()) -> Columns:
        shares = shares_of_classes(outputs)
        names = labels or ()
        chosen = shares.argmax(axis=1)
        if thresholds:
            chosen = _choose_by_threshold(shares, thresholds[0])
        answers = [names[number] for number in chosen]
        return {"label": answers, **by_label(shares, names)}

    def predicts(self) -> str:
        labels = f"one of {len(self.names)} labels, {', '.join(self.names)}"
        if self.facts.thresholds is None:
            return labels
        return f"{labels}, the second from a probability of {self.facts.thresholds[0]:g} on"

    def of_data(self, labels: Numbers) -> str:
        names = self.names
        classes = f"{len(names)} classes: {format_counts(labels, names)}"
        are_numbers = all(name.lstrip("-").isdecimal() for name in names)
        if len(names) <= 2 or not are_numbers:
            return classes
        instead = f"low: {names[0]} and high: {names[-1]} in place of names, metrics: [pearson]"
        return f"{classes}; as a number: {instead}"

    def counts(self, labels: Numbers) -> Scores:
        shares = count_classes(labels, self.names) / len(labels)
        columns = [f"share_{name}" for name in self.names]
        return dict(zip(columns, shares.tolist(), strict=True))

    def rare(self, labels: Numbers) -> str:
        names = self.names
        enough = max(RARE_SHARE * len(labels), RARE_TEXTS)
        even_share = 1 / len(names)
        few = list[str]()
        for name, count in zip(names, count_classes(labels, names), strict=True):
            share = count / len(labels)
            if count < enough and share < even_share / 2:  # with few texts, or many classes, all would be rare
                few.append(f"{name} {count:,} ({share:.1%})")
        if not few:
            return ""
        return f"{some_of(few)}: macro_f1 sees them, and train.class_weights: balanced gives them weight"

    def absent(self, labels: Numbers) -> Sequence[str]:
        counts = count_classes(labels, self.names)
        return [name for name, count in zip(self.names, counts, strict=True) if not count]

    def of_class(self, metric: str) -> str:
        return positive_of(metric, self.entry, self.facts)


class PairwiseComparisonDescription(ClassificationDescription):
    """Describes the classes of a comparison of two texts of one column."""

    @property
    def columns(self) -> tuple[str, ...]:
        (column,) = super().columns
        return column, rename_fields(column, lambda name: f"{name}_pair")


def positive_of(metric: str, entry: DatasetEntry, facts: Facts) -> str:
    """Return the class of a class-specific metric as words after its name; empty for other metrics."""
    if metric != "f1":
        return ""
    _, positive = names_of(entry, facts)
    return f" of {positive}"


def shares_of_classes(outputs: Numbers) -> Numbers:  # (n, classes)
    """Return the probability of each class."""
    from scipy.special import softmax

    return softmax(outputs.astype(np.float64), axis=1)


def _choose_by_threshold(shares: Numbers, threshold: float) -> Numbers:  # (n, 2) -> (n,)
    """Return the second class where its probability reaches the threshold, else the first."""
    is_second = shares[:, 1] >= threshold
    return is_second.astype(np.int64)


def by_label(shares: Numbers, names: Sequence[str]) -> dict[str, list[float]]:
    """Return probabilities (n, labels) as one column to print per label."""
    columns = dict[str, list[float]]()
    for name, probabilities in zip(names, shares.T.tolist(), strict=True):
        rounded = [round_significant(probability, 6) for probability in probabilities]
        columns[f"p({name})"] = rounded
    return columns


def class_of(value: Any, label: Any) -> int | None:
    """Return the class of a value, by number or name or by a threshold; None within the margin of the threshold.

    Raises:
        ValueError: if it is not a class, or not a number to compare.
    """
    threshold = getattr(label, "threshold", None)
    if threshold is not None:
        number = finite(value)
        is_near = _are_near(number, threshold, label.margin)
        return None if is_near else int(number > threshold)
    known = _number_names(label.names)
    plain = plain_text(value)
    if plain in known:
        return known[plain]
    if plain == str(HIDDEN):
        raise ValueError(IS_HIDDEN)
    names = label.names
    allowed = f"allowed: {', '.join(names)}"
    if len(known) > len(names):
        last = len(names) - 1
        allowed = f"{allowed}, or their numbers, 0 to {last}"
    raise ValueError(f"label {value!r} is not a class; {allowed}{nearest(value, names)}")


def _are_near(first: Any, second: Any, margin: float) -> Any:
    """Return whether numbers differ by less than a margin; a difference that rounding has made smaller does not."""
    larger = np.maximum(np.abs(first), np.abs(second))
    return np.abs(first - second) < margin - ROUNDING * larger


@cache
def _number_names(names: tuple[str, ...]) -> dict[str, int]:
    known = dict[str, int]()
    for number, name in enumerate(names):
        if known.setdefault(plain_text(name), number) != number:
            same = names[known[plain_text(name)]]
            raise ValueError(f"label.names: {same!r} and {name!r} would be one class; name each in another way")
    # Names such as "1" ... "5" are values in the file, so then a position in the list is not accepted as well.
    if any(name.lstrip("-").isdecimal() for name in known):
        return known
    return known | {str(number): number for number in range(len(names))}
