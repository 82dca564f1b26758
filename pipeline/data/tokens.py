"""Tokenized splits: Arrow files that are mapped into memory, so that they may be larger than it."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from pipeline import artifacts
from pipeline.errors import UserError, first_line
from pipeline.params.rows import GROUP

INPUTS = ("input_ids", "token_type_ids", "length", "label")


def load_tokens(split: str) -> Dataset:
    """Return a tokenized split as the Trainer takes it, without the text: rows are read where they are asked for.

    Raises:
        UserError: if the split has not been tokenized, or its file is broken.
    """
    whole = _mapped(split)
    return whole.select_columns([name for name in whole.column_names if name in (*INPUTS, GROUP)])


def load_column(split: str, name: str) -> Sequence[Any] | None:
    """Return a column beside the tokens, such as a text or the number of a group, if it is there; it stays on disk.

    Raises:
        UserError: as `load_tokens`.
    """
    whole = _mapped(split)
    return whole[name] if name in whole.column_names else None


def groups_of(split: Dataset) -> np.ndarray | None:
    """Return the number of the group of each example of a tokenized split; None where each is scored by itself."""
    return np.array(split[GROUP][:]) if GROUP in split.column_names else None


def _mapped(split: str) -> Dataset:
    path = artifacts.tokens(split)
    if not path.is_file():
        raise UserError(f"{path}: not found; run python -m stages.tokenize before, or dvc repro")
    try:
        return Dataset.from_file(str(path))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: corrupt or cut off: {first_line(error)}; run python -m stages.tokenize") from None


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
