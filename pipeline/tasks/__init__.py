"""Task types: `tasks.of(entry, facts)` is the one place that chooses the task type of a data set entry."""

from pipeline.params.dataset_entry import DatasetEntry
from pipeline.params.labels import Classes, Completion, Conversation, LabelSpec, MultiLabel, Number, Threshold
from pipeline.tasks.classes import (
    ClassificationDescription,
    ClassificationHead,
    ClassificationPreprocessor,
    ClassificationScoring,
    MultipleChoiceScoring,
    PairwiseComparisonDescription,
    PairwiseComparisonPreprocessor,
)
from pipeline.tasks.completion import (
    CompletionDescription,
    CompletionHead,
    CompletionPreprocessor,
    CompletionScoring,
    ConversationDescription,
    ConversationPreprocessor,
    with_prompt,
)
from pipeline.tasks.facts import Facts
from pipeline.tasks.multi_label import MultiLabelDescription, MultiLabelHead, MultiLabelPreprocessor, MultiLabelScoring
from pipeline.tasks.number import RegressionDescription, RegressionHead, RegressionPreprocessor, RegressionScoring
from pipeline.tasks.task import Outcome, Task, TaskType
from pipeline.tasks.tenants import TenantsDescription, TenantsHead, TenantsPreprocessor, TenantsScoring

__all__ = ["TASKS", "Facts", "Outcome", "Task", "TaskType", "kinds", "of"]

CLASSES = TaskType(
    "classes", ClassificationPreprocessor, ClassificationHead, ClassificationScoring, ClassificationDescription
)
CHOICES = CLASSES._replace(scoring=MultipleChoiceScoring)
PAIRS = CLASSES._replace(preprocessor=PairwiseComparisonPreprocessor, description=PairwiseComparisonDescription)
MULTI_LABEL = TaskType("multi_label", MultiLabelPreprocessor, MultiLabelHead, MultiLabelScoring, MultiLabelDescription)
NUMBER = TaskType("number", RegressionPreprocessor, RegressionHead, RegressionScoring, RegressionDescription)
COMPLETION = TaskType("completion", CompletionPreprocessor, CompletionHead, CompletionScoring, CompletionDescription)
CONVERSATION = COMPLETION._replace(preprocessor=ConversationPreprocessor, description=ConversationDescription)
TENANTS_OF_CLASSES = TaskType("classes", TenantsPreprocessor, TenantsHead, TenantsScoring, TenantsDescription)
TENANTS_OF_NUMBERS = TENANTS_OF_CLASSES._replace(kind="number")

TASKS: dict[type[LabelSpec], TaskType] = {
    Classes: CLASSES,
    Threshold: CLASSES,
    MultiLabel: MULTI_LABEL,
    Number: NUMBER,
    Completion: COMPLETION,
    Conversation: CONVERSATION,
}


def of(entry: DatasetEntry, facts: Facts = Facts()) -> Task:  # noqa: B008 it is immutable
    """Return the task of a data set entry: by its label's form, unless it has tenants, choices or pairs.

    `facts` are the facts found in its data; they are empty until the data are read.
    """
    return Task(_type_of(entry), with_prompt(entry), facts)


def _type_of(entry: DatasetEntry) -> TaskType:
    if entry.tenant is not None:
        return TENANTS_OF_NUMBERS if entry.predicts_number else TENANTS_OF_CLASSES
    if entry.choices:
        return CHOICES
    if entry.pairs is not None:
        return PAIRS
    return TASKS[type(entry.label)]


def kinds() -> dict[str, TaskType]:
    """Return the task types by their names in task.json."""
    # If several have one name, the first stays.
    return {task_type.kind: task_type for task_type in reversed(TASKS.values())}
