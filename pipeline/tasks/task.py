"""A task: a data set entry, the facts found in its data, and one object per part that depends on the task type.

Each part has a module: `preprocessing` makes examples and tokens from rows, `head` describes the model's head and loss,
`scoring` compares outputs with labels, and `description` makes words and files. A task type combines four such classes.
Class methods are for `pipeline.predict`, where an adapter answers without a data set.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import numpy as np
import pandas as pd

from pipeline.params.dataset_entry import DatasetEntry
from pipeline.tasks.facts import Facts

if TYPE_CHECKING:  # tokenize reads and checks data without them, as they take seconds to import
    from torch import Tensor

    from pipeline.tasks.description import Description
    from pipeline.tasks.head import Head
    from pipeline.tasks.preprocessing import Preprocessor
    from pipeline.tasks.scoring import Scoring

Numbers = np.ndarray[Any, Any]
Groups = Numbers | None  # (examples,): the number of the group of each, if they are scored by it
Columns = Mapping[str, Sequence[Any]]  # a value for each example
Scores = dict[str, float]  # numbers by name, such as of metrics
Kept = tuple[pd.DataFrame, Counter[str]]  # examples, and how many were left out by reason
Value = TypeVar("Value")
# Columns of examples in addition to text, text_pair and label.
GROUP = "group"
TENANT = "tenant"
MIRROR = "mirror"  # the column of examples that is equal where rows have the same texts, in whichever order
EXPECTED = "expected"  # the column with what a language model is to write; `label` is then its hash


def name_interval(name: str, interval: tuple[Value, Value]) -> dict[str, Value]:
    """Return the ends of a score's 95 % interval by name."""
    low, high = interval
    return {f"{name}_low": low, f"{name}_high": high}


def interval_of(name: str, metrics: Mapping[str, Value]) -> tuple[Value, Value]:
    """Return the ends of the 95 % interval of a score among metrics, which `name_interval` has named."""
    return metrics[f"{name}_low"], metrics[f"{name}_high"]


@dataclass(frozen=True)
class Outcome:
    """Model outputs for a split, in order, with labels and groups."""

    outputs: "Tensor"  # (examples, ...), as Head.outputs
    labels: Numbers  # (examples,)
    groups: Groups = None  # (examples,): numbers of groups or tenants, if examples are scored by these


class Part:
    """A part of a task, given the data set entry and the facts found in its data."""

    def __init__(self, entry: DatasetEntry, facts: Facts) -> None:
        self.entry = entry
        self.facts = facts
        self.label: Any = entry.label  # label in the form that chose the task type


class TaskType(NamedTuple):
    """A task type: the class of each part."""

    kind: str  # name of the task type in task.json
    preprocessor: "type[Preprocessor]"
    head: "type[Head]"
    scoring: "type[Scoring]"
    description: "type[Description]"


class Task:
    """A task type on a data set entry, with the facts that were found in its data."""

    def __init__(self, type_: TaskType, entry: DatasetEntry, facts: Facts) -> None:
        self.type = type_
        self.entry = entry
        self.facts = facts
        self.preprocessor = type_.preprocessor(entry, facts)
        self.head = type_.head(entry, facts)
        self.scoring = type_.scoring(entry, facts)
        self.description = type_.description(entry, facts)

    def with_facts(self, facts: Facts) -> Self:
        """Return the task with other facts."""
        return type(self)(self.type, self.entry, facts)

    def with_fitted(self, **fitted: Sequence[float] | None) -> Self:
        """Return the task with other `thresholds` or `temperatures`."""
        return self.with_facts(self.facts.model_copy(update=fitted))

    def tune_thresholds(self, validation: Outcome) -> Self:
        """Return the task with thresholds chosen on a validation split; without thresholds, itself."""
        thresholds = self.scoring.best_thresholds(validation)
        return self if thresholds is None else self.with_fitted(thresholds=thresholds)
