"""What a trained adapter reads and what its head says: task.json, which the stage train puts beside the weights.

PEFT's adapter_config.json has no place for the names of the labels, the columns and the length of the texts.
"""

import json
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from pipeline.errors import UserError
from pipeline.files import read_small
from pipeline.params import mistakes
from pipeline.params.rows import DatasetRow

CONFIG, FILE = "adapter_config.json", "task.json"
MOST_BYTES = 1_000_000  # with names of 10,000 labels


class Task(BaseModel):
    """The task of an adapter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    columns: tuple[str, ...] = Field(min_length=1, max_length=2, description="of the text, or of a pair of texts")
    labels: tuple[str, ...] | None = Field(description="names in the order of the head's outputs; null for a number")
    max_length: PositiveInt = Field(description="tokens; longer texts were cut")

    @classmethod
    def of(cls, dataset: DatasetRow, max_length: int) -> Self:
        """Return the task of a data set."""
        return cls(columns=dataset.columns, labels=dataset.names or None, max_length=max_length)

    def write(self, folder: Path) -> None:
        """Write the file into an adapter's folder."""
        (folder / FILE).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read(folder: Path) -> Task | None:
    """Return the task of an adapter's folder; None if it does not say.

    Raises:
        UserError: if the folder is no adapter, or its file is broken; one line a mistake.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: not an adapter folder, {CONFIG} is missing")
    path = folder / FILE
    if not path.exists():
        return None
    try:
        content = json.loads(read_small(path, MOST_BYTES).decode("utf-8"))
        return Task.model_validate(content)
    except ValidationError as error:
        raise UserError("\n".join(mistakes.lines(error, Task, content, path, ()))) from None
    except (ValueError, RecursionError) as error:  # no JSON, or no UTF-8
        raise UserError(f"{path}: not valid JSON: {error}") from None
