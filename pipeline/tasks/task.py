"""What a kind of task is: everything that depends on whether a model chooses a class or predicts a number.

A kind is a subclass of Task beside a form of label in `pipeline.params.labels`; `pipeline.tasks.TASKS` brings them
together. A task is made from a row of data. What an adapter needs to answer without one, in `pipeline.predict`, are
class methods: task.json names the kind.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.params.dataset_row import DatasetRow
from pipeline.params.sources import is_template
from pipeline.tasks import texts
from pipeline.tasks.cells import is_missing, plain_text
from pipeline.tasks.examples import GROUP, Examples, Split, fold, hashes

if TYPE_CHECKING:  # tokenize reads and checks data without them, as they take seconds to import
    from torch import Tensor
    from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

Numbers = np.ndarray[Any, Any]
Columns = Mapping[str, Sequence[Any]]  # a value for each example


@dataclass(frozen=True)
class Outcome:
    """What a model says of a split, beside what is right, in the order of the split."""

    outputs: "Tensor"  # (examples, ...), as Task.outputs
    labels: Numbers  # (examples,)
    groups: Numbers | None = None  # (examples,): group numbers, if examples are scored in groups


class Answers(NamedTuple):
    """What is scored, in the order of the examples or, for choices, of the group numbers."""

    predicted: Numbers
    labels: Numbers
    groups: Numbers | None  # of the examples, if they are scored in groups


class Task(ABC):
    """A kind of task on a row of data."""

    kind: ClassVar[str]  # the word for it in task.json
    target: ClassVar[pa.DataType]  # of the column `label` of examples
    hub_task: ClassVar[str] = "text-classification"  # on a model card
    peft_task: ClassVar[str] = "SEQ_CLS"  # PEFT's task_type

    def __init__(self, row: DatasetRow) -> None:
        self.row = row

    # Examples

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns of the source from which examples are made."""
        marked = (name for mark in self.row.mark for name in mark.columns)
        named = (*texts.used(self.row), *marked, *(self.row.group or ()), self.row.label.column)
        return tuple(dict.fromkeys(named))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the one or two texts that the model reads: columns of the source, or stand-ins for derived texts."""
        made = ("text", "text_pair")
        return tuple(made[place] if is_template(entry) else entry for place, entry in enumerate(self.row.text))

    @property
    def is_grouped(self) -> bool:
        """Whether examples are scored in groups, which no cut separates."""
        return self.row.group is not None

    @abstractmethod
    def targets(self, table: pd.DataFrame) -> pd.Series:
        """Return the label of each row of a table, none of whose cells are missing; NaN within the margin.

        Raises:
            ValueError: for a value that the label does not allow; names its line or row.
        """

    def examples(self, table: pd.DataFrame) -> Examples:
        """Return the examples of a table with the columns that `reads` names, indexed by line or row.

        Raises:
            ValueError: for a text or label that is neither missing nor allowed; names its line or row.
        """
        numbers = np.arange(len(table))
        missing = table.map(is_missing).to_numpy(bool).any(axis=1)
        table, numbers = table[~missing], numbers[~missing]
        found = self.targets(table)
        apart = found.notna().to_numpy()
        table, numbers, found = table[apart], numbers[apart], found[apart]
        made = texts.of(table, self.row)
        same = texts.folded(made)  # all parts of a row are kept or dropped together
        together = same if not self.row.group else table[self.row.group[0]].map(str).map(fold)
        if self.row.group:
            named = (table[name].map(plain_text) for name in self.row.group)
            numbers = pd.factorize(hashes(reduce(lambda one, other: one + "\0" + other, named))[:, 0])[0]
        keys, kind = hashes(together)[:, 0], self.target.to_pandas_dtype()
        parts = []
        for place, text in enumerate(made):
            digests = hashes(same if len(made) == 1 else same + f"\n{place}")
            columns = {"label": self.of_part(found.to_numpy(), place).astype(kind), "key": keys, GROUP: numbers}
            columns |= {"hash_1": digests[:, 0], "hash_2": digests[:, 1]}
            parts.append(text.assign(**columns).astype(dict.fromkeys(text, "str")))  # no rows have no type
        order = np.arange(len(made) * len(table)).reshape(len(made), -1).T.ravel()  # parts of a row are neighbors
        whole = pd.concat(parts, ignore_index=True).iloc[order].reset_index(drop=True)
        types = dict.fromkeys(made[0], pa.string()) | {"label": self.target}
        schema = pa.schema(types | ({GROUP: pa.int64()} if self.is_grouped else {}))
        kept = pa.Table.from_pandas(whole[schema.names], schema, preserve_index=False).replace_schema_metadata(None)
        dropped = Counter({"missing": int(missing.sum()), "within_margin": int((~apart).sum())})
        digests = whole[["hash_1", "hash_2"]].to_numpy()
        return Examples(kept, digests, whole["key"].to_numpy(), whole["label"].to_numpy(), dropped)

    def of_part(self, targets: Numbers, place: int) -> Numbers:
        """Return the labels of the examples that are the part of rows at this place: all of them, or a choice."""
        return targets

    def chosen(self, examples: Examples, rows: Numbers, split: str) -> Split:
        """Return the split that is made of these rows of examples, after the cut."""
        return Split(examples.table, rows, examples.labels[rows], Counter())

    def lacks(self, labels: Numbers) -> str:
        """Return what the labels of train lack, so that nothing could be learned; an empty text if nothing."""
        return ""

    def counts(self, labels: Numbers) -> dict[str, float]:
        """Return what the stage tokenize reports of the labels of a split, by name."""
        return {}

    # Model

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The classes in the order of the head's outputs; none if outputs have no names."""

    @classmethod
    def auto_class(cls) -> type:
        """Return the Auto class of transformers that loads the model with its head."""
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    @classmethod
    def architectures(cls) -> Container[str]:
        """Return the architectures, `model_type`, for which transformers has such a model."""
        from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as NAMES

        return NAMES

    @classmethod
    def width(cls, labels: Sequence[str] | None) -> int:
        """Return the number of the head's outputs: one for each label or, if they have no names, one."""
        return len(labels or ()) or 1

    @classmethod
    def misfit(cls, model: Any, labels: Sequence[str] | None) -> str:
        """Return why a model cannot answer with these labels of task.json; an empty text if it can."""
        outputs = model.config.num_labels
        return "" if cls.width(labels) == outputs else f"labels: {outputs} names are needed, one per output of the head"

    @abstractmethod
    def head(self) -> dict[str, Any]:
        """Return the fields of the model's configuration that determine its head."""

    @classmethod
    def collator(cls, tokenizer: "PreTrainedTokenizerBase") -> "DataCollatorWithPadding":
        """Return the collator that makes a batch of examples, padded to the longest one, with an attention mask."""
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(tokenizer)

    def loss(self) -> "Callable[[Tensor, Tensor], Tensor] | None":
        """Return the loss of a batch as a function of its outputs and labels; None if it is the model's own."""
        return None

    # Answers and scores

    @classmethod
    def outputs(cls, model: "PreTrainedModel", batch: Mapping[str, "Tensor"]) -> "Tensor":  # (examples, ...)
        """Return what a model says of a batch without labels; the same shape behind the first axis for all batches."""
        return model(**batch).logits

    @abstractmethod
    def predicted(self, outcome: Outcome) -> Numbers:
        """Return what is predicted of each example or, for choices, of each group."""

    def known(self, labels: Numbers, groups: Numbers | None) -> Numbers:
        """Return what predictions are compared with."""
        return labels

    def answers(self, outcome: Outcome) -> Answers:
        """Return what the metrics of the row score."""
        return Answers(self.predicted(outcome), self.known(outcome.labels, outcome.groups), outcome.groups)

    @abstractmethod
    def constant(self, labels: Numbers) -> Any:
        """Return the constant prediction that is the baseline on labels."""

    @abstractmethod
    def losses(self, outcome: Outcome) -> tuple[float, float]:
        """Return the mean loss, and that of the best constant output."""

    def scores(self, outcome: Outcome) -> dict[str, float]:
        """Return the row's metrics.

        Raises:
            UserError: if a prediction is not a finite number.
        """
        from pipeline.tasks import scores

        return scores.score(self.row.metrics, *self.answers(outcome))

    def metrics(self, outcome: Outcome, resamples: int) -> dict[str, float]:
        """Return the row's metrics with 95 % intervals and baselines, the first one as `score` too, and the loss.

        Raises:
            UserError: if a prediction is not a finite number.
        """
        from pipeline.tasks import intervals, scores

        names, (predicted, labels, groups) = self.row.metrics, self.answers(outcome)
        found = scores.score(names, predicted, labels, groups)
        constant = np.full(len(labels), self.constant(labels))
        baselines = scores.score(names, constant, labels, groups)
        metrics = {
            "score": found[names[0]],
            **found,
            **{f"{name}_baseline": value for name, value in baselines.items()},
        }
        for name, (low, high) in intervals.intervals(names, predicted, labels, resamples, groups).items():
            metrics |= {f"{name}_low": low, f"{name}_high": high}
        loss, baseline = self.losses(outcome)
        return metrics | {"loss": loss, "loss_baseline": baseline}

    @abstractmethod
    def table(self, outcome: Outcome) -> Columns:
        """Return columns for each example: actual, predicted, and both as groups that a plot can count."""

    # What is said of it

    @classmethod
    @abstractmethod
    def printed(cls, outputs: "Tensor", labels: Sequence[str] | None) -> Columns:
        """Return the columns that pipeline.predict prints; `labels` are those of task.json."""

    @abstractmethod
    def says(self) -> str:
        """Return what it predicts, for a card: an object of a sentence."""

    def shown(self, labels: Numbers) -> str:
        """Return what the labels of all splits are, for pipeline.add."""
        return self.says()


def rounded(value: float, digits: int) -> float:
    """Return a number rounded to significant digits."""
    return float(f"{value:.{digits}g}")
