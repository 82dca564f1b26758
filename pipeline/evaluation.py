"""Outputs of a model over a tokenized split."""

from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorWithPadding

from pipeline.data import tokens
from pipeline.methods.device import device_of
from pipeline.tasks import Outcome, Task
from pipeline.tasks.task import TENANT

INPUTS = ("input_ids", "token_type_ids")


@torch.inference_mode()
def outputs(
    task: Task | type[Task],
    model: Any,
    split: Dataset,
    collate: DataCollatorWithPadding,
    batch_size: int,
    advance: Callable[[int], None] = lambda done: None,
) -> Tensor:  # (examples, ...), float32, on the CPU, in the order of the split
    """Return the model's output for each example; examples of similar length are batched to minimize padding.

    Batches are moved to the model's device.
    """
    model.eval()
    where = device_of(model)
    lengths = torch.tensor(split["length"][:])
    order = lengths.argsort(descending=True, stable=True)
    inputs = split.select_columns([name for name in split.column_names if name in (*INPUTS, TENANT, *task.judged)])
    found = []
    for indices in order.split(batch_size):
        batch = {name: value.to(where) for name, value in collate(inputs[indices.tolist()]).items()}
        found.append(task.outputs(model, batch).float().cpu())
        advance(len(indices))
    return torch.cat(found)[order.argsort()]


def outcome(outputs: Tensor, split: Dataset) -> Outcome:
    """Return the outputs for a labeled split beside its labels."""
    return Outcome(outputs, tokens.labels_of(split), tokens.groups_of(split))
