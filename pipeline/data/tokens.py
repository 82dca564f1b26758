"""Tokenized splits as models take them."""

from collections.abc import Iterator

import torch
from datasets import Dataset
from pyarrow import parquet
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from pipeline import artifacts
from pipeline.errors import UserError

INPUTS = ("input_ids", "token_type_ids", "length", "label")


def load_tokens(split: str) -> Dataset:
    """Return a tokenized split as the Trainer takes it, in memory: without the text, and without a copy in a cache.

    Raises:
        UserError: if the split has not been tokenized.
    """
    path = artifacts.tokens(split)
    if not path.is_file():
        raise UserError(f"{path}: not found; run python -m stages.tokenize before, or dvc repro")
    columns = [name for name in parquet.read_schema(path).names if name in INPUTS]
    return Dataset(parquet.read_table(path, columns=columns))


def collator(tokenizer: PreTrainedTokenizerBase) -> DataCollatorWithPadding:
    """Return what makes a batch of examples: padded to its longest one, with a mask."""
    return DataCollatorWithPadding(tokenizer)


def sample(
    split: Dataset, tokenizer: PreTrainedTokenizerBase, count: int, seed: int, size: int
) -> Iterator[dict[str, Tensor]]:
    """Yield labelled batches of a size of `count` examples drawn from a tokenized split, or of all if it has fewer."""
    tokens = split.remove_columns("length")
    collate = collator(tokenizer)
    drawn = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))[:count]
    for indices in drawn.split(size):
        yield dict(collate(tokens[indices.tolist()]))
