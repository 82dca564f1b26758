"""Tokenized splits: Arrow files that are mapped into memory, so that they may be larger than it."""

from collections.abc import Iterable, Iterator

import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from pipeline import artifacts
from pipeline.errors import UserError, first_line

INPUTS, TEXTS = ("input_ids", "token_type_ids", "length", "label"), ("text", "text_pair")


def load_tokens(split: str) -> Dataset:
    """Return a tokenized split as the Trainer takes it, without the text: rows are read where they are asked for.

    Raises:
        UserError: if the split has not been tokenized, or its file is broken.
    """
    whole = _mapped(split)
    return whole.select_columns([name for name in whole.column_names if name in INPUTS])


def load_texts(split: str) -> dict[str, Iterable[str]]:
    """Return the texts of a tokenized split by column, to be read one by one.

    Raises:
        UserError: as `load_tokens`.
    """
    whole = _mapped(split)
    return {name: whole[name] for name in whole.column_names if name in TEXTS}


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
    tokens = split.remove_columns("length")
    collate = collator(tokenizer)
    drawn = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))[:count]
    for indices in drawn.split(size):
        yield dict(collate(tokens[indices.tolist()]))
