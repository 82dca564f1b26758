"""Convert outputs to columns to print, for one task or for tenants with different tasks."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.methods.adapter_task import AdapterTask
from pipeline.tasks.task import TENANT, Columns


def columns_of(
    outputs: np.ndarray,
    asked: Mapping[str, Sequence[Any]],
    task: AdapterTask,
    tenants: Sequence[AdapterTask],
) -> Columns:
    """Convert outputs (texts, ...) to columns to print, by the task of each text's tenant if there are `tenants`."""
    if not tenants:
        return columns_of_texts(outputs, task)
    tasks = [tenants[number] for number in asked[TENANT]]
    return columns_of_tenants(outputs, tasks)


def columns_of_texts(outputs: np.ndarray, task: AdapterTask) -> Columns:
    """Convert outputs (texts, ...) of one task to columns to print; outputs after the task's own are ignored."""
    kind = task.task
    width = kind.head.width(task.labels)
    return kind.description.to_columns(outputs[:, :width], task.labels, task.tuned_thresholds or ())


def columns_of_tenants(outputs: np.ndarray, tasks: Iterable[AdapterTask]) -> Columns:
    """Convert outputs (texts, ...) with one task per row to columns to print: the answer and its probability."""
    columns = defaultdict[str, list[Any]](list)
    for row, task in zip(outputs, tasks, strict=True):
        (name, (answer,)), *shares = columns_of_texts(row[None], task).items()
        columns[name].append(answer)
        if shares:
            probabilities = {column: share for column, (share,) in shares}
            largest = max(probabilities.values())  # for no label or several
            columns["p"].append(probabilities.get(f"p({answer})", largest))
    return columns
