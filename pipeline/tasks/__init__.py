"""Kinds of tasks: `tasks.of(row, facts)` is the one place that knows what kind of task a row of data is."""

from pipeline.params.dataset_row import DatasetRow
from pipeline.params.labels import Classes, Completion, Conversation, Form, Number, Several, Threshold
from pipeline.tasks.classes import ChoicesTask, ClassesTask, PairsTask
from pipeline.tasks.completion import CompletionTask
from pipeline.tasks.facts import Facts
from pipeline.tasks.number import NumberTask
from pipeline.tasks.several import SeveralTask
from pipeline.tasks.task import Outcome, Task
from pipeline.tasks.tenants import TenantsTask

__all__ = ["TASKS", "CompletionTask", "Facts", "Outcome", "SeveralTask", "Task", "TenantsTask", "kinds", "of"]

TASKS: dict[type[Form], type[Task]] = {
    Classes: ClassesTask,
    Threshold: ClassesTask,
    Several: SeveralTask,
    Number: NumberTask,
    Completion: CompletionTask,
    Conversation: CompletionTask,
}


def of(row: DatasetRow, facts: Facts = Facts()) -> Task:  # noqa: B008 it is immutable
    """Return the task of a row: that of its label's form, unless tenants, choices or pairs make more of it.

    `facts` are what was found in its data; until they are read there are none.
    """
    return _kind_of(row)(row, facts)


def _kind_of(row: DatasetRow) -> type[Task]:
    if row.tenant is not None:
        return TenantsTask
    if row.choices:
        return ChoicesTask
    if row.pairs is not None:
        return PairsTask
    return TASKS[type(row.label)]


def kinds() -> dict[str, type[Task]]:
    """Return the kinds by the words that task.json has for them."""
    return {task.kind: task for task in reversed(TASKS.values())}  # of several with one word, the first
