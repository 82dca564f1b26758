"""Tokenized splits as models take them."""

from collections.abc import Iterator

import torch
from datasets import Dataset
from pyarrow import parquet
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from pipeline import artifacts
from pipeline.data import datasets
from pipeline.data.texts import tokenize
from pipeline.errors import UserError
from pipeline.params.rows import DatasetRow

INPUTS = ("input_ids", "token_type_ids", "length", "label")
SAMPLE_BATCH = 32  # examples


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


def sample(tokenizer: PreTrainedTokenizerBase, count: int, seed: int) -> Iterator[dict[str, Tensor]]:
    """Yield labelled batches of `count` examples drawn from the train split, or of all if it has fewer.

    Raises:
        UserError: if the train split has not been tokenized.
    """
    tokens = load_tokens("train").remove_columns("length")
    collate = collator(tokenizer)
    drawn = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))[:count]
    for indices in drawn.split(SAMPLE_BATCH):
        yield dict(collate(tokens[indices.tolist()]))


def first(
    row: DatasetRow, name: str, tokenizer: PreTrainedTokenizerBase, count: int, max_length: int
) -> Iterator[dict[str, Tensor]]:
    """Yield labelled batches of the first `count` examples of the train split of any row, or of all if it has fewer.

    They are a random sample, as splits are in the order of a hash.

    Raises:
        UserError: as `pipeline.data.datasets.load`.
    """
    train = datasets.load(row, name).splits["train"]
    table, _ = tokenize(train.select(range(min(count, len(train)))), tokenizer, max_length)
    found = Dataset(table.select([column for column in table.column_names if column in INPUTS and column != "length"]))
    collate = collator(tokenizer)
    for batch in found.iter(SAMPLE_BATCH):
        yield dict(collate(batch))
