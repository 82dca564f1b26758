"""The task of a trained adapter: task.json, which the stage train writes next to the weights.

PEFT's adapter_config.json has no fields for the label names, the columns and the length of the texts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import field_validator

from lsr_onnx.answers import Labels
from lsr_onnx.names import is_reserved
from lsr_onnx.task import validate_task_info
from pipeline import tasks
from pipeline.core.errors import UserError, nearest
from pipeline.params.sources import StrictModel
from pipeline.params.validation import validate
from pipeline.tasks import Task, TaskType

FILE = "task.json"


class AdapterTask(StrictModel):
    """The task of an adapter: its type and everything needed to answer.

    `lsr_onnx.task` checks the fields for all readers and writers of the file.
    """

    kind: str  # task type, such as classes or number
    columns: tuple[str, ...]  # columns of the text or the pair of texts
    labels: Labels
    tenants: dict[str, Labels] | None = None  # labels by tenant, in place of `labels`, in the same order
    tenant: str | None = None  # the column that names the tenant
    thresholds: tuple[float, ...] | None = None  # the probability from which on each label of several applies
    # Probability of the second of two classes from which on it is the answer.
    threshold: float | None = None
    # Temperatures that divided the head's rows: one for all, or one per label or tenant.
    temperatures: tuple[float, ...] | None = None
    max_length: int  # tokens; longer texts were truncated
    template: str | None = None  # template of prompts for text generation: a chat template in Jinja, or none
    stop_token_ids: tuple[int, ...] | None = None  # tokens, by number, that end what it writes

    @field_validator("kind")
    @classmethod
    def _is_known(cls, kind: str) -> str:
        known = sorted(tasks.kinds())
        if kind not in known:
            raise ValueError(f"no such task type{nearest(kind, known)}; there are {', '.join(known)}")
        return kind

    @classmethod
    def of(cls, task: Task, max_length: int, tokenizer: Any = None) -> Self:
        """Build the task.json fields of a task; for text generation, with the template of a tokenizer."""
        description = task.description
        task_info = description.task_info(tokenizer)
        return cls(kind=task.type.kind, columns=description.columns, max_length=max_length, **task_info)

    @property
    def tuned_thresholds(self) -> tuple[float, ...] | None:
        """The threshold of each label, or of the second of two classes; None if the likeliest class is predicted."""
        return self.thresholds if self.threshold is None else (self.threshold,)

    @property
    def task(self) -> TaskType:
        """The task type, whose class methods need no data set entry."""
        return tasks.kinds()[self.kind]

    def write(self, folder: Path) -> None:
        """Write the file into an adapter's folder.

        Raises:
            InputError: if a field exceeds the limits of readers; names it and what is allowed.
        """
        validate_task_info(self.model_dump(mode="json", exclude_defaults=True), folder)
        (folder / FILE).write_text(self.model_dump_json(indent=2, exclude_defaults=True) + "\n", encoding="utf-8")


def read_bank(folder: Path) -> dict[str, AdapterTask]:
    """Return the task of each tenant in a bank's folder.

    Raises:
        UserError: if a task info is not a task, or an adapter has none; InputError if there is no bank.
    """
    from lsr.serve.file import read as read_bank_file  # it imports torch, which takes seconds

    task_infos = read_bank_file(folder).task_infos
    of_tenants = {name: task_info for name, task_info in task_infos.items() if not is_reserved(name)}
    return tasks_of_infos(of_tenants, folder)


def tasks_of_infos(task_infos: Mapping[str, Mapping[str, Any]], where: Path) -> dict[str, AdapterTask]:
    """Return the task in each task info of tenants, by name; `where` they are.

    Raises:
        UserError: if a task info is not a task.
    """
    for name, task_info in task_infos.items():
        _check_complete(name, task_info, where)
    return {name: validate(AdapterTask, task_info, where, (name,)) for name, task_info in task_infos.items()}


def _check_complete(name: str, task_info: Mapping[str, Any], folder: Path) -> None:
    # A bank takes adapters without task.json, such as a LoRA from elsewhere, and `lsr serve` answers with them.
    required = [field for field, info in AdapterTask.model_fields.items() if info.is_required()]
    lacking = [field for field in required if field not in task_info]
    if lacking:
        reason = f"came into the bank without {', '.join(lacking)} in its {FILE}: label names are missing"
        remedy = f"write {FILE} next to its weights and create the bank again, or use: lsr serve {folder}"
        raise UserError(f"{folder}: {name}: {reason}; {remedy}")


def read(folder: Path) -> AdapterTask:
    """Read the task in an adapter's folder.

    Raises:
        UserError: if its file is missing or invalid, one line per mistake; InputError if it is not an adapter.
    """
    from lsr.loading.contents import read_task
    from lsr.tuner.files import read_config

    content = read_task(folder)
    if content is None:
        read_config(folder)  # reports better if the adapter itself is missing
        raise UserError(f"{folder}: no {FILE}, which names the columns and labels")
    return validate(AdapterTask, content, folder / FILE, ())
