"""What cells read: the tokens of a data set, as much of them as a protocol sees."""

from functools import cache

import pyarrow as pa
from datasets import Dataset
from transformers import DataCollatorWithPadding

from benchmarks.family.experiment import Sizes
from pipeline import params
from pipeline.data import datasets, tokens
from pipeline.data.encoding import tokenize
from pipeline.methods import base_models


@cache
def splits(data: str, model: str, max_length: int, sizes: Sizes) -> dict[str, Dataset]:
    """Return the first rows of each split as tokens, cut at `max_length`; none is longer than the sizes allow.

    Training rows beyond what the sizes allow fill up the validation split: it decides on rates, and small ones decide
    badly.
    """
    tokenizer = base_models.load_tokenizer(params.load_row("model", model))
    texts = datasets.load(params.load_row("data", data), data).splits
    tables = {}
    for split in datasets.SPLITS:
        table, lengths = tokenize(texts[split], tokenizer, max_length)
        table = table.select([name for name in table.column_names if name in tokens.INPUTS])
        tables[split] = table if sizes.longest is None else table.filter(lengths <= sizes.longest)
    if sizes.train is not None:
        spare = tables["train"].slice(sizes.train)
        tables["validation"] = pa.concat_tables([tables["validation"], spare])
    return {split: Dataset(table.slice(0, getattr(sizes, split))) for split, table in tables.items()}


def collator(model: str) -> DataCollatorWithPadding:
    """Return what makes a batch of examples for a row of pipeline/models.yaml."""
    return tokens.collator(base_models.load_tokenizer(params.load_row("model", model)))
