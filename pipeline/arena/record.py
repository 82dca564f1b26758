"""The record of one training run of the arena: a line of a file that comparisons read, with its provenance.

The files of a folder are read together, so the results of several machines are merged by copying files.
"""

import os
import platform
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from math import inf
from pathlib import Path
from typing import Any, Literal

import torch
from dulwich.errors import NotGitRepository
from dulwich.repo import Repo
from filelock import FileLock
from pydantic import Field, ValidationError, model_validator

from pipeline.core import artifacts
from pipeline.core.errors import UserError
from pipeline.params.sources import StrictModel

FOLDER = artifacts.ARENA
ENDING = ".jsonl"
LOCK = Path(".cache/arena/records.lock")
DIGITS = 6  # significant digits of scores in a record, and digits of predictions


class Quantized(StrictModel):
    """Size and scores of a trained adapter and head, quantized to a lower precision; see `lsr.tuner.packing`."""

    bytes: int  # size of the file, including the head
    validation: float
    test: dict[str, float]


class Record(StrictModel, extra="ignore"):
    """One training run and its scores: a method on a task with two learning rates and a seed.

    Lists by epoch have one item per epoch, or one item without training or if the number of epochs is tuned; they are
    empty if the run did not finish.
    Older records have more fields, which nothing reads.
    """

    key: str  # hash of all that determines the result except the code, 16 hexadecimal digits
    preset: str
    task: str  # a row of pipeline/datasets.yaml
    method: str  # name of the method in the preset
    rate: float | None  # learning rate of the adapter; None if only the head is trained
    head_rate: float
    epochs: int | None = Field(None, exclude_if=lambda epochs: epochs is None)  # number of epochs, if it is tuned
    seed: int

    status: Literal["finished", "diverged", "failed"]
    reason: str  # why it did not finish, in one line; otherwise empty
    metrics: tuple[str, ...]  # metrics of the task; the first one is its score
    validation: tuple[float, ...] = ()  # score on the held-out part of train, by epoch
    test: tuple[dict[str, float], ...] = ()  # metrics on the test split, for GLUE the validation split, by epoch
    # Predicted classes or numbers for the test split, in its order, at the selected epoch.
    predicted: tuple[float, ...] = ()
    # Scores of quantized adapters by precision, after the last epoch of tuned training runs.
    quantized: dict[str, Quantized] = Field(default_factory=dict)

    # Scores of tenants without any text in training, by their name and their number of labeled texts.
    unseen: dict[str, dict[int, float]] = Field(default_factory=dict, exclude_if=lambda scores: not scores)

    trained: int = 0  # trained parameters of the adapter
    stored: int = 0  # parameters in its file
    file_bytes: int = 0  # size of the adapter's file, including the head, or of the bank of all tenants
    tenant_bytes: int = 0  # mean number of these bytes per tenant

    seconds: dict[str, float]  # CPU seconds by activity: load, start, train, score, quantize; see clock
    made: dict[str, str]  # commit, date, cpu, and versions of torch, transformers and peft

    @model_validator(mode="before")
    @classmethod
    def _has_present_names(cls, values: Any) -> Any:
        if isinstance(values, dict) and "rounded" in values:
            raise ValueError("it is of an earlier version, whose keys no plan has")
        return values

    @property
    def selected(self) -> int:
        """The epoch, from 0, with the best validation score; ties go to the last."""
        return max(range(len(self.validation)), key=lambda epoch: (self.validation[epoch], epoch))

    @property
    def held_out(self) -> float:
        """The validation score at the selected epoch, by which tuning decides; -inf if the run did not finish."""
        return self.validation[self.selected] if self.status == "finished" else -inf

    def score(self) -> float:
        """Return the first metric on the test split at the selected epoch."""
        return self.test[self.selected][self.metrics[0]]


def read(folder: Path) -> dict[str, Record]:
    """Read all records in a folder by key; empty if there is no folder.

    A partial last line of a killed run is ignored. Among records with one key, finished runs take precedence, then
    those with scores in other precisions.
    """
    records: dict[str, Record] = {}
    for path in sorted(folder.glob(f"*{ENDING}")):
        for record in _lines(path):
            known = records.get(record.key)
            if known is None or known.status != "finished" or len(known.quantized) < len(record.quantized):
                records[record.key] = record
    return records


def append(path: Path, record: Record) -> None:
    """Append a record to a file, after removing a partial last line of a killed run.

    Another command may append to the file at the same time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(LOCK):
        path.touch()
        os.truncate(path, len(_whole(path.read_bytes())))
        with path.open("a", encoding="utf-8") as file:
            file.write(record.model_dump_json() + "\n")


def _lines(path: Path) -> Iterator[Record]:
    for number, line in enumerate(_whole(path.read_bytes()).splitlines(), start=1):
        try:
            yield Record.model_validate_json(line)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise UserError(f"{path}: line {number} is not a record of the arena: {reason}; delete the line") from None


def _whole(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


@cache
def describe_provenance() -> dict[str, str]:
    """Return the commit, the date, the processor, the GPU if there is one, and versions."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.exists() else []
    cpus = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    try:
        # The commit that is checked out, whether or not files have changed since.
        commit = Repo.discover().head().decode()[:12]
    except (NotGitRepository, KeyError):
        commit = "none"
    return {
        "commit": commit,
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": next(cpus, platform.processor() or platform.machine()),
        "cores": str(os.cpu_count()),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        **{package: version(package) for package in ("torch", "transformers", "peft")},
    }


def clock() -> float:
    """Return CPU time in seconds, which excludes other work on the machine; wall time on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()
