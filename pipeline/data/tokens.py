"""Tokenized splits as models take them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from pyarrow import parquet
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from pipeline import artifacts
from pipeline.errors import UserError
from pipeline.params.rows import GROUP

INPUTS = ("input_ids", "token_type_ids", "length", "label")


def load_tokens(split: str) -> Dataset:
    """Return a tokenized split as the Trainer takes it, in memory: without the text, and without a copy in a cache.

    Raises:
        UserError: if the split has not been tokenized.
    """
    columns = [name for name in _columns(split) if name in (*INPUTS, GROUP)]
    return Dataset(parquet.read_table(artifacts.tokens(split), columns=columns))


def load_column(split: str, name: str) -> list[Any] | None:
    """Return what a column beside the tokens holds, such as a text or the number of a group; None if there is none.

    Raises:
        UserError: if the split has not been tokenized.
    """
    if name not in _columns(split):
        return None
    found: list[Any] = parquet.read_table(artifacts.tokens(split), columns=[name])[name].to_pylist()
    return found


def groups_of(split: Dataset) -> np.ndarray | None:
    """Return the number of the group of each example of a tokenized split; None where each is scored by itself."""
    return np.array(split[GROUP]) if GROUP in split.column_names else None


def _columns(split: str) -> list[str]:
    path = artifacts.tokens(split)
    if not path.is_file():
        raise UserError(f"{path}: not found; run python -m stages.tokenize before, or dvc repro")
    names: list[str] = parquet.read_schema(path).names
    return names


def collator(tokenizer: PreTrainedTokenizerBase) -> DataCollatorWithPadding:
    """Return what makes a batch of examples: padded to its longest one, with a mask."""
    return DataCollatorWithPadding(tokenizer)


def sample(
    split: Dataset, tokenizer: PreTrainedTokenizerBase, count: int, seed: int, size: int
) -> Iterator[dict[str, Tensor]]:
    """Yield labelled batches of a size of `count` examples drawn from a tokenized split, or of all if it has fewer."""
    tokens = split.select_columns([name for name in split.column_names if name in INPUTS and name != "length"])
    collate = collator(tokenizer)
    drawn = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))[:count]
    for indices in drawn.split(size):
        yield dict(collate(tokens[indices.tolist()]))
