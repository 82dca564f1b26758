"""What one training of the arena came to: a line of a file, which whoever compares reads.

Files of one folder are read together, so that the results of several machines merge by copying.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from pipeline import artifacts
from pipeline.errors import UserError, first_line

FOLDER = artifacts.ARENA
ENDING = ".jsonl"
Score = float
Status = Literal["finished", "diverged", "failed"]


class Record(BaseModel):
    """One training and its scores: a method on a task at two learning rates, with a seed.

    Lists by epoch have as many entries as there are epochs; they are empty where the training did not finish.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    key: str  # 16 hexadecimal digits, of all that determines the result but the code
    preset: str
    task: str  # a row of pipeline/datasets.yaml
    method: str  # its name in the preset
    adapter: str  # a section of params.yaml
    overrides: dict[str, JsonValue]  # what it sets in params.yaml, by dotted keys
    reads: dict[str, JsonValue]  # how much of each split it sees, as the preset says
    rate: float | None  # learning rate of the adapter; None where the head alone trains
    head_rate: float
    seed: int

    status: Status
    reason: str  # of what did not finish, in one line; else empty
    metrics: tuple[str, ...]  # of the task; the first one is its score
    validation: tuple[Score, ...]  # score on the part of train that is held out, by epoch
    test: tuple[dict[str, Score], ...]  # metrics on the official validation split or the task's test split, by epoch
    loss: tuple[float, ...]  # mean training loss, by epoch
    predicted: tuple[float, ...]  # of the test split, in its order, at the selected epoch: class numbers, or numbers

    trained: int  # parameters of the adapter that train
    stored: int  # in its file
    head: int  # parameters of the head, which trains with every method
    file_bytes: int  # of the adapter's file, its head included
    degrees_of_freedom: int | None  # of the updates that it can reach; None where nobody has counted them

    seconds: dict[str, float]  # by what they were spent on: load, start, train, score; see machine.clock
    peak_bytes: int  # of the process' memory
    made: dict[str, str]  # by whom and when: commit, date, cpu, and versions of torch, transformers and peft

    @property
    def selected(self) -> int:
        """The epoch with the best validation score, from 0; of several the last, as in the stage."""
        return max(range(len(self.validation)), key=lambda epoch: (self.validation[epoch], epoch))

    def score(self, epoch: int | None = None, metric: str | None = None) -> Score:
        """Return a metric on the test split: the first one, at the selected epoch, unless another is asked for."""
        return self.test[self.selected if epoch is None else epoch][metric or self.metrics[0]]


def read(folder: Path) -> dict[str, Record]:
    """Return all records in a folder by their keys; none if there is no folder.

    What a killed run left of a last line is passed over; a training that finished goes before one that did not.

    Raises:
        UserError: if a whole line is no record; names the file and the number.
    """
    found: dict[str, Record] = {}
    for path in sorted(folder.glob(f"*{ENDING}")):
        for record in _lines(path):
            known = found.get(record.key)
            if known is None or known.status != "finished":
                found[record.key] = record
    return found


def append(path: Path, record: Record) -> None:
    """Add a record to a file; what a killed run left of a last line is cut off before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    whole = _whole(path.read_bytes())
    if len(whole) < path.stat().st_size:
        os.truncate(path, len(whole))
    with path.open("a", encoding="utf-8") as file:
        file.write(record.model_dump_json() + "\n")


def best(records: Mapping[Any, Record]) -> Record | None:
    """Return the record with the best validation score at its selected epoch, of several the first; None without one.

    The test score has no say.
    """
    finished = [record for record in records.values() if record.status == "finished"]
    return max(finished, key=lambda record: record.validation[record.selected], default=None)


def _lines(path: Path) -> Iterator[Record]:
    for number, line in enumerate(_whole(path.read_bytes()).splitlines(), start=1):
        try:
            yield Record.model_validate(json.loads(line))
        except (ValueError, ValidationError) as error:
            reason = first_line(error)
            raise UserError(f"{path}: line {number} is no record of the arena: {reason}; delete the line") from None


def _whole(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]
