"""The inputs and labels of a trained adapter: task.json, which the stage train writes next to the weights.

PEFT's adapter_config.json has no fields for the label names, the columns and the length of the texts.
"""

from pathlib import Path
from typing import Self

from pydantic import Field, PositiveInt

from pipeline.core.errors import UserError
from pipeline.params.dataset_row import DatasetRow
from pipeline.params.reading import validated
from pipeline.params.sources import Row

FILE = "task.json"


class Task(Row):
    """The task of an adapter."""

    columns: tuple[str, ...] = Field(min_length=1, max_length=2, description="of the text, or of a pair of texts")
    labels: tuple[str, ...] | None = Field(description="names in the order of the head's outputs; null for a number")
    max_length: PositiveInt = Field(description="tokens; longer texts were truncated")

    @classmethod
    def of(cls, dataset: DatasetRow, max_length: int) -> Self:
        """Return the task of a data set."""
        return cls(columns=dataset.columns, labels=dataset.names or None, max_length=max_length)

    def write(self, folder: Path) -> None:
        """Write the file into an adapter's folder."""
        (folder / FILE).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read(folder: Path) -> Task:
    """Return the task in an adapter's folder.

    Raises:
        UserError: if the folder is not an adapter, or its file is missing or broken; one line per mistake.
    """
    from lsr.loading.task_note import read_task
    from lsr.tuner.files import read_config
    from lsr.tuner.mistakes import InputError  # these import torch, which takes seconds

    try:
        read_config(folder)
        content = read_task(folder)
    except InputError as error:
        raise UserError(str(error)) from None
    if content is None:
        raise UserError(f"{folder}: no {FILE}, which names the columns and labels")
    return validated(Task, content, folder / FILE, ())
