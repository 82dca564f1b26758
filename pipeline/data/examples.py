"""Examples of any row of the table, not only the selected one: for frames pooled over several data sets."""

from collections.abc import Iterator

from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pipeline.data import datasets
from pipeline.data.encoding import tokenize
from pipeline.data.tokens import batches
from pipeline.params.dataset_row import DatasetRow


def first(
    row: DatasetRow, name: str, tokenizer: PreTrainedTokenizerBase, count: int, max_length: int, size: int, seed: int
) -> Iterator[dict[str, Tensor]]:
    """Yield labeled batches of the first `count` examples of a row's train split, or of all if it has fewer.

    A batch has `size` examples. They are a random sample, because splits are ordered by a hash.

    Raises:
        UserError: as `pipeline.data.datasets.load`.
    """
    train = datasets.load(row, name).splits["train"]
    table, _ = tokenize(train.select(range(min(count, len(train)))), tokenizer, max_length)
    yield from batches(Dataset(table), tokenizer, size, seed)
