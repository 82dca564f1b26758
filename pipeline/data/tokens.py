"""Load tokenized splits: memory-mapped Arrow files, which may be larger than memory."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorWithPadding

from pipeline import tasks
from pipeline.core import artifacts
from pipeline.core.errors import UserError
from pipeline.params.dataset_entry import DatasetEntry
from pipeline.tasks import Task, facts
from pipeline.tasks.task import EXPECTED, GROUP, TENANT

TEXTS = ("text", "text_pair", "prompt", EXPECTED)
INPUTS = ("input_ids", "token_type_ids", "length", "label", TENANT)


def load_task(entry: DatasetEntry) -> Task:
    """Return the task of the tokenized data set entry, with the facts of its data."""
    return tasks.of(entry, facts.read(artifacts.TOKENS))


def load_tokens(split: str) -> Dataset:
    """Load a tokenized split for the Trainer, without texts; rows are read on demand."""
    whole = _open_split(split)
    needed = (*INPUTS, GROUP, EXPECTED)
    kept = [name for name in whole.column_names if name in needed]
    return whole.select_columns(kept)


def load_texts(split: str) -> dict[str, Sequence[str]]:
    """Load the text columns of a tokenized split, text and perhaps text_pair; they stay on disk."""
    whole = _open_split(split)
    return {name: whole[name] for name in TEXTS if name in whole.column_names}


def groups_of(split: Dataset) -> np.ndarray | None:
    """Return the number of the group or tenant of each example of a tokenized split; None if there are none."""
    for name in (GROUP, TENANT):
        if name in split.column_names:
            return np.array(split[name][:])
    return None


def labels_of(split: Dataset) -> np.ndarray:
    """Return the target of each example of a tokenized split: its label, or the expected text."""
    column = EXPECTED if EXPECTED in split.column_names else "label"
    return np.array(split[column][:])


def _open_split(split: str) -> Dataset:
    path = artifacts.tokens(split)
    if not path.is_file():
        raise UserError(f"{path}: not found; run python -m stages.tokenize first, or dvc repro")
    return Dataset.from_file(str(path))


def sample(
    split: Dataset, collate: DataCollatorWithPadding, count: int, seed: int, size: int
) -> Iterator[dict[str, Tensor]]:
    """Yield labeled batches of at most `count` examples drawn from a tokenized split; each has similar lengths."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))
    drawn = order[:count].tolist()
    examples = split.select(drawn)
    lengths = torch.tensor(examples["length"][:])
    batches = torch.argsort(lengths, stable=True).split(size)
    inputs = [name for name in examples.column_names if name in INPUTS and name != "length"]
    tokens = examples.select_columns(inputs)
    places = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed))
    for place in places.tolist():
        numbers = batches[place].tolist()
        yield dict(collate(tokens[numbers]))
