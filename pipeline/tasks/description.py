"""Describe a task in files and on the screen: task.json, model card, predictions, data, and the end of a run."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd

from pipeline.params.sources import rename_fields
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
        """The columns of the one or two input texts, or the templates that are filled from columns.

        A column with marked spans is a field of another name, so that a file of new texts needs a column that has them.
        """
        marked = {span.column: f"{span.column}, marked" for span in self.entry.span}
        columns = list[str]()
        for template in self.entry.text:
            filled = f"{{{template}}}" if template in marked else template
            renamed = rename_fields(filled, lambda name: marked.get(name, name))
            columns.append(renamed)
        return tuple(columns)

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

    def absent(self, labels: Numbers) -> Sequence[str]:
        """Return the classes that no example of a split has."""
        return ()

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
