"""What a kind of task is: everything that depends on whether a model chooses a class or predicts a number.

A kind is a subclass of Task beside a form of label in `pipeline.params.labels`; `pipeline.tasks.TASKS` brings them
together. A task is made from a row of data. What an adapter needs to answer without one, in `pipeline.predict`, are
class methods: task.json names the kind.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.params.dataset_row import DatasetRow
from pipeline.params.sources import is_template
from pipeline.tasks.cells import (
    TEXT_COLUMNS,
    Cells,
    Record,
    column_texts,
    fold,
    folded,
    hash_of,
    is_missing,
    place_of,
    plain_text,
    text_columns,
    texts_of,
)
from pipeline.tasks.encoding import tokenize
from pipeline.tasks.facts import Facts

if TYPE_CHECKING:  # tokenize reads and checks data without them, as they take seconds to import
    from torch import Tensor
    from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

Numbers = np.ndarray[Any, Any]
Groups = Numbers | None  # (examples,): the number of the group of each, if they are scored by it
Columns = Mapping[str, Sequence[Any]]  # a value for each example
Scores = dict[str, float]  # numbers by name, such as of metrics
Kept = tuple[pd.DataFrame, Counter[str]]  # examples, and how many were left out by reason
# Columns of examples in addition to text, text_pair and label.
GROUP = "group"
TENANT = "tenant"
MIRROR = "mirror"  # the column of examples that is equal where rows have the same texts, in whichever order
EXPECTED = "expected"  # the column with what a language model is to write; `label` is then its hash


@dataclass(frozen=True)
class Outcome:
    """What a model says of the examples of a split, in their order, beside what is right."""

    outputs: "Tensor"  # (examples, ...), as Task.outputs
    labels: Numbers  # (examples,)
    groups: Groups = None  # (examples,): numbers of groups or tenants, if examples are scored by these


class Task(ABC):
    """A kind of task on a row of data, with the facts that were found in these data."""

    kind: str  # the word for it in task.json
    target: str  # type of the column `label` of examples
    hub_task: ClassVar[str] = "text-classification"  # on a model card
    peft_task: ClassVar[str] = "SEQ_CLS"  # PEFT's task_type
    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"  # of transformers, for a model with its head
    beside: ClassVar[tuple[str, ...]] = ()  # columns of a batch that the loss reads, and the model does not
    writes: ClassVar[bool] = False  # a language model writes the answer
    has_thresholds: ClassVar[bool] = False  # a label applies from a probability that validation chooses
    has_one_class_each: bool = False  # each example has one class, of its own or of its tenant's
    can_balance: ClassVar[bool] = False  # there are classes that a loss can give equal weights
    judged: ClassVar[tuple[str, ...]] = ()  # columns that `outputs` reads, and the model does not
    baseline: ClassVar[str] = "for one answer to all"  # what baselines are, on the last screen

    def __init__(self, row: DatasetRow, facts: Facts) -> None:
        self.row = row
        self.facts = facts
        self.label: Any = row.label  # in the form that chose the kind

    def with_facts(self, facts: Facts) -> Self:
        """Return the task with other facts."""
        return type(self)(self.row, facts)

    def with_thresholds(self, thresholds: Sequence[float] | None) -> Self:
        """Return the task with other thresholds."""
        return self.with_facts(self.facts.model_copy(update={"thresholds": thresholds}))

    # Examples

    def facts_of_rows(self, train: Iterable[Record]) -> Facts:
        """Return what is found in all rows of train, on which its examples depend."""
        return Facts()

    def facts_of_examples(self, train: pd.DataFrame) -> Facts:
        """Return the facts of its rows with what is found in the examples of train after the cut."""
        return self.facts

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns of the source from which examples are made."""
        names = text_columns(self.row)
        for mark in self.row.mark:
            names += mark.columns
        names += self.row.group or ()
        if self.row.tenant:
            names.append(self.row.tenant)
        names.append(self.row.label.column)
        return tuple(dict.fromkeys(names))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the one or two texts that the model reads: columns of the source, or stand-ins for derived texts."""
        named = zip(TEXT_COLUMNS, self.row.text, strict=False)
        return tuple(name if is_template(entry) else entry for name, entry in named)

    @property
    def strata(self) -> list[str]:
        """The columns of examples, of each of whose values a cut takes its share; none for a cut of the whole."""
        return ["label"] if self.row.stratify else []

    def offset(self, stratum: Any, rows: int) -> float:
        """Return where in its interval of a cut the first of the rows of a stratum lies, in [0, 1)."""
        return 0.5

    def prepared(self, cells: Cells) -> Cells:
        """Return the cells of a row as they are read; a row that then lacks one is dropped."""
        return cells

    def names_in(self, cells: Cells) -> Iterable[tuple[str, object]]:
        """Return the columns and values of a row of the source that are names: of its classes, labels or tenant."""
        return ()

    @abstractmethod
    def label_of(self, cells: Cells) -> Any:
        """Return the label of a row, none of whose cells is missing; None within the margin.

        Raises:
            ValueError: for a value that the label does not allow.
        """

    def examples(self, rows: Sequence[Record], before: int) -> Kept:
        """Return the examples of some rows of a split, before which so many come, and the dropped ones by reason.

        Examples have the columns text, text_pair (for a pair), label, and group or tenant, a number, if they are scored
        by it; hash, equal where all texts are, of one tenant; position, uniform in [0, 1) over what is cut together;
        and, where texts are made of several columns, mirror, equal where these have the same texts in any order.

        Raises:
            ValueError: for the first text or label that is neither missing nor allowed, with its line or row.
        """
        left_out = Counter[str](missing=0, within_margin=0)
        examples = list[tuple[Any, ...]]()
        tenants = {name: number for number, name in enumerate(self.facts.tenants)}
        for number, (where, read) in enumerate(rows, before):
            try:
                cells = self.prepared(read)
                is_lacking = any(map(is_missing, cells.values()))
                label = None if is_lacking else self.label_of(cells)
                texts = [] if label is None else texts_of(cells, self.row)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            if is_lacking:
                left_out["missing"] += 1
            elif label is None:
                left_out["within_margin"] += 1
            else:
                examples += self._of_row(cells, label, texts, number, tenants)
        return self._framed(examples), left_out

    def _of_row(
        self,
        cells: Cells,
        label: Any,
        texts: Sequence[Mapping[str, str]],
        number: int,  # of the row in its split
        tenants: Mapping[str, int],
    ) -> Iterator[tuple[Any, ...]]:
        """Yield the examples of a row, as `_framed` takes them: one for each of its texts."""
        same = self.alike(cells, texts)
        together = same  # all parts of a row are kept or dropped together
        group = self.row.group
        if group:
            together = fold(str(cells[group[0]]))
            keys = [plain_text(cells[name]) for name in group]
            number = hash_of("\0".join(keys)) >> 1  # signed, later
        if self.row.tenant:
            tenant = plain_text(cells[self.row.tenant])
            number = tenants[tenant]
            same = f"{same}\n{tenant}"
        position = place_of(together)
        mirror = self.hash_in_any_order(cells) if self.has_mirrors else 0
        for place, part in enumerate(texts):
            digest = hash_of(same if len(texts) == 1 else f"{same}\n{place}")
            of_part = int(label == place) if self.row.choices else label
            yield *part.values(), of_part, number, digest, position, mirror

    def _framed(self, examples: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
        """Return examples in a table, without the columns that a row of data does not need."""
        texts = TEXT_COLUMNS[: len(self.row.text)]
        scored_by = TENANT if self.row.tenant else GROUP
        table = pd.DataFrame(examples, columns=[*texts, "label", scored_by, "hash", "position", MIRROR])
        types = {
            "label": self.target,
            scored_by: "int64",
            "hash": "uint64",
            MIRROR: "uint64",
        }
        needless = list[str]()
        if not self.row.is_grouped and not self.row.tenant:
            needless.append(scored_by)
        if not self.has_mirrors:
            needless.append(MIRROR)
        return table.astype(types).drop(columns=needless)

    @property
    def has_mirrors(self) -> bool:
        """Whether two rows can have the same texts in another order, which takes several columns."""
        return len(text_columns(self.row)) > 1

    def hash_in_any_order(self, cells: Cells) -> int:
        """Return a hash that is equal where rows have the same texts, whichever column each is in."""
        texts = column_texts(cells, self.row).values()
        return hash_of("\n".join(sorted(map(fold, texts))))

    def alike(self, cells: Cells, made: Sequence[Mapping[str, str]]) -> str:
        """Return a text that is equal where the texts `made` of rows count as the same."""
        return folded(chain.from_iterable(texts.values() for texts in made))

    def after_cut(self, examples: pd.DataFrame, split: str) -> Kept:
        """Return what becomes of the examples of a split after the cut, train's first, and the dropped by reason."""
        return examples, Counter()

    def lacks(self, train: pd.DataFrame) -> str:
        """Return what the examples of train lack, so that nothing could be learned; an empty text if nothing."""
        return ""

    def tokenized(
        self, batches: Iterable[pa.Table], tokenizer: "PreTrainedTokenizerBase", max_length: int
    ) -> Iterator[tuple[pa.Table, Numbers]]:
        """Yield for each batch of examples the tokens of those that fit, and the lengths of their whole texts.

        Raises:
            ValueError: if an example cannot become tokens.
        """
        return tokenize(batches, tokenizer, max_length)

    def rare(self, labels: Numbers) -> str:
        """Return which classes are so rare that accuracy hides them; an empty text if none, or there are no classes."""
        return ""

    def counts(self, labels: Numbers) -> Scores:
        """Return what the stage tokenize reports of the labels of a split, by name."""
        return {}

    # Model

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The classes in the order of the head's outputs; none if outputs have no names."""

    @classmethod
    def width(cls, labels: Sequence[str] | None) -> int:
        """Return the number of the head's outputs: one for each label or, if they have no names, one."""
        return len(labels or ()) or 1

    @classmethod
    def misfit(cls, model: Any, labels: Sequence[str] | None) -> str:
        """Return why a model cannot answer with these labels of task.json; an empty text if it can."""
        outputs = model.config.num_labels
        if cls.width(labels) == outputs:
            return ""
        return f"labels: {outputs} names are needed, one per output of the head"

    @abstractmethod
    def head(self) -> dict[str, Any]:
        """Return the fields of the model's configuration that determine its head."""

    @classmethod
    def collator(cls, tokenizer: "PreTrainedTokenizerBase") -> "DataCollatorWithPadding":
        """Return the collator that makes a batch of examples, padded to the longest one, with an attention mask."""
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(tokenizer)

    @property
    def selects(self) -> str:
        """The score of the validation split that chooses the checkpoint: the row's first metric."""
        return self.row.metrics[0]

    def loss(self) -> "Callable[..., Tensor] | None":
        """Return the loss of a batch as a function of outputs, labels, and `beside` by name; None for the model's."""
        return None

    def balanced(self, labels: Numbers) -> "Callable[..., Tensor]":
        """Return the loss in which the classes of a whole split, whose labels these are, weigh the same."""
        raise NotImplementedError  # see `can_balance`

    def own(self, logits: "Tensor", **beside: "Tensor") -> "Tensor":
        """Return what of a model's logits is about each row of a batch, which its columns `beside` say."""
        return logits

    # Answers and scores

    @classmethod
    def outputs(cls, model: "PreTrainedModel", batch: Mapping[str, "Tensor"]) -> "Tensor":  # (examples, ...)
        """Return what a model says of a batch without labels; the same shape behind the first axis for all batches."""
        return model(**batch).logits

    def settled(self, validation: Outcome) -> Self:
        """Return the task with thresholds chosen on a validation split; where an example has one answer, itself."""
        return self

    @abstractmethod
    def predicted(self, outcome: Outcome) -> Numbers:
        """Return what is predicted of each example or, for choices, of each group."""

    def known(self, labels: Numbers, groups: Groups) -> Numbers:
        """Return what predictions are compared with."""
        return labels

    def answers(self, outcome: Outcome) -> tuple[Numbers, Numbers, Groups]:
        """Return what the metrics of the row score: predictions, labels, and the groups that are scored as wholes."""
        groups = outcome.groups if self.row.group else None
        return self.predicted(outcome), self.known(outcome.labels, outcome.groups), groups

    def constants(self, labels: Numbers) -> Iterable[Any]:
        """Return constant predictions, one of which is the best constant for each metric of the row on these labels."""
        raise NotImplementedError

    def baselines(self, labels: Numbers, groups: Groups) -> Scores:
        """Return the score of the best constant prediction for each metric of the row: for each, it may be another.

        It is the best on the very labels that are scored, so no constant that is chosen without them scores more.
        """
        from pipeline.tasks import scores

        best = Scores()
        for constant in self.constants(labels):
            predictions = np.full(labels.shape, constant)
            for name, value in scores.score(self.row.metrics, predictions, labels, groups).items():
                best[f"{name}_baseline"] = max(value, best.get(f"{name}_baseline", value))
        return best

    @abstractmethod
    def losses(self, outcome: Outcome) -> tuple[float, float]:
        """Return the mean loss, and that of the best constant output."""

    def scores(self, outcome: Outcome) -> Scores:
        """Return the row's metrics; predictions that are no finite numbers are refused."""
        from pipeline.tasks import scores

        return scores.score(self.row.metrics, *self.answers(outcome))

    def metrics(self, outcome: Outcome, resamples: int) -> Scores:
        """Return the row's metrics with 95 % intervals and baselines, the first one as `score` too, and the loss."""
        from pipeline.tasks import scores

        names = self.row.metrics
        predicted, labels, groups = self.answers(outcome)
        scored = scores.score(names, predicted, labels, groups)
        metrics = {"score": scored[names[0]], **scored, **self.baselines(labels, groups)}
        for name in names:
            low, high = scores.interval(name, predicted, labels, resamples, groups)
            metrics[f"{name}_low"] = low
            metrics[f"{name}_high"] = high
        loss, baseline = self.losses(outcome)
        metrics["loss"] = loss
        metrics["loss_baseline"] = baseline
        metrics["examples"] = len(labels)
        return metrics

    def parts(self, outcome: Outcome, resamples: int) -> tuple[Scores, dict[str, Scores]]:
        """Return the metrics of all examples, and of each part that is scored by itself: a tenant, or all."""
        metrics = self.metrics(outcome, resamples)
        return metrics, {"all": metrics}

    @abstractmethod
    def table(self, outcome: Outcome) -> Columns:
        """Return columns for each example: actual, predicted, and both as groups that a plot can count."""

    def by_class(self, outcome: Outcome) -> Sequence[tuple[str | float, ...]]:
        """Return a row of `scores.BY_CLASS` for each class or label; none if there are no common ones."""
        return ()

    # What is said of it

    def note(self, tokenizer: "PreTrainedTokenizerBase | None") -> dict[str, Any]:
        """Return what task.json says of it, but for its kind, columns and lengths.

        Only what writes needs the tokenizer; without one it leaves out how prompts become tokens.
        """
        return {"labels": self.names or None, "thresholds": self.facts.thresholds}

    @classmethod
    @abstractmethod
    def printed(cls, outputs: "Tensor", labels: Sequence[str] | None, thresholds: Sequence[float] = ()) -> Columns:
        """Return the columns that pipeline.predict prints; `labels` and `thresholds` are those of task.json."""

    @abstractmethod
    def says(self) -> str:
        """Return what it predicts, for a card: an object of a sentence."""

    def shown(self, labels: Numbers) -> str:
        """Return what the labels of all splits are, for pipeline.add."""
        return self.says()
