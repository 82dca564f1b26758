"""Describe a task in files and on the screen: task.json, model card, predictions, data, and the end of a run."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from pipeline.params.sources import is_template
from pipeline.tasks.cells import TEXT_COLUMNS
from pipeline.tasks.task import Columns, Numbers, Part, Scores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Line = tuple[str, str]  # a heading, and the text after it
ReadTable = Callable[[Path], pd.DataFrame]  # reads a report


class Description(Part, ABC):
    """Words and files about a task."""

    hub_task = "text-classification"  # name of the task on a model card
    baseline = "for the constant baseline"  # names of the baselines in the run summary
    baseline_name = "the constant baseline"  # name of the baseline in a difference from it
    baseline_word = "constant"  # first word of the line with that difference
    first_change = "train.extend_epochs=auto"  # suggested change of params.yaml for a first training run
    sections: ClassVar[tuple[str, ...]] = ()  # additional sections of params.yaml on which training depends
    scored_by = ""  # command that scores such adapters, if pipeline.score does not

    @property
    def unit(self) -> str:
        """The unit of errors: the column of numbers; empty if there is none."""
        return ""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the one or two input texts: columns of the source, or stand-ins for derived texts."""
        named = zip(TEXT_COLUMNS, self.entry.text, strict=False)
        return tuple(name if is_template(template) else template for name, template in named)

    def task_info(self, tokenizer: "PreTrainedTokenizerBase | None") -> dict[str, Any]:
        """Return the fields of task.json, except for its kind, columns and lengths.

        Only text generation needs the tokenizer; without it, the fields for tokenizing prompts are left out.
        """
        return {
            "labels": None,
            "thresholds": self.facts.thresholds,
            "temperatures": self.facts.temperatures,
        }

    def card(self) -> dict[str, Any]:
        """Return the fields of a model card that differ between task types."""
        return {}

    @classmethod
    @abstractmethod
    def to_columns(cls, outputs: Numbers, labels: Sequence[str] | None, thresholds: Sequence[float] = ()) -> Columns:
        """Convert outputs (texts, ...) of Head.outputs to the columns that pipeline.predict prints.

        `labels` and `thresholds` are those of task.json.
        """

    @abstractmethod
    def predicts(self) -> str:
        """Return what is predicted, as the object of a sentence on the card."""

    def of_data(self, labels: Numbers) -> str:
        """Describe the labels of all splits for pipeline.add."""
        return self.predicts()

    def counts(self, labels: Numbers) -> Scores:
        """Return the counts by name that the stage tokenize reports for the labels of a split."""
        return {}

    def rare(self, labels: Numbers) -> str:
        """Describe classes so rare that accuracy hides them; empty if there are none."""
        return ""

    def of_class(self, metric: str) -> str:
        """Return the class of a class-specific metric as words after its name; empty for other metrics."""
        return ""

    def results(self, metrics: Mapping[str, float], table: ReadTable) -> Iterable[Line]:
        """Return lines about the scores of a run, in addition to its metrics."""
        return ()

    def commands(self, table: ReadTable) -> Iterable[Line]:
        """Return the commands that use the adapter of a run."""
        yield "predict", f"python -m pipeline.predict {self.format_texts()}"

    def format_texts(self) -> str:
        """Return placeholders for the model's input texts, as arguments of a command."""
        second = ' "Another one."' if len(self.columns) > 1 else ""
        return f'"A text of yours."{second}'
