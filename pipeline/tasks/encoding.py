"""Turn texts into tokens, in the same way for training data and for prediction."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

BATCH = 1000  # texts per call of the tokenizer
WRITTEN = 10_000  # texts per batch of a file


def tokenize(
    texts: "Dataset",
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    advance: Callable[[int], None] = lambda done: None,
) -> tuple[pa.Table, np.ndarray]:  # lengths: (rows,), before truncation
    """Return the tokens of each row of `texts` (text, perhaps text_pair), at most `max_length`, and full lengths.

    There is no padding, hence no attention mask: it would be all ones. In a pair, the longer text is truncated first.
    """
    kinds = {"input_ids": pa.int32(), "token_type_ids": pa.int8()}
    names = [name for name in kinds if name in tokenizer.model_input_names]
    tables: list[pa.Table] = []
    lengths: list[int] = []
    for batch in texts.with_format("arrow").iter(BATCH):
        given = [batch[name].to_pylist() for name in ("text", "text_pair") if name in batch.column_names]
        encoded, whole = _encoded(given, tokenizer, max_length)
        arrays: dict[str, pa.Array | pa.ChunkedArray] = {
            name: pa.array(encoded[name], pa.list_(kinds[name])) for name in names
        }
        arrays["length"] = pa.array(map(len, encoded["input_ids"]), pa.int32())
        arrays |= {name: batch[name] for name in sorted(batch.column_names, key=lambda name: name != "label")}
        tables.append(pa.table(arrays))
        lengths += whole
        advance(len(batch))
    return pa.concat_tables(tables).combine_chunks(), np.array(lengths)


def write(table: pa.Table, path: Path) -> None:
    """Write tokens to an Arrow file, which is mapped into memory where it is read."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=WRITTEN)


def _encoded(
    texts: Sequence[Sequence[str]], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> tuple[dict[str, list[list[int]]], list[int]]:
    """Return tokens of texts or of texts and their pairs by column, and the length of each before truncation.

    Only the few that are too long are encoded twice.
    """
    options = {"return_attention_mask": False, "verbose": False}  # not verbose: no warning about long texts
    encoded = dict(tokenizer(*texts, **options))
    lengths = [len(ids) for ids in encoded["input_ids"]]
    for position in (position for position, length in enumerate(lengths) if length > max_length):
        one = (column[position] for column in texts)
        shorter = tokenizer(*one, truncation=True, max_length=max_length, **options)
        for name, values in encoded.items():
            values[position] = shorter[name]
    return encoded, lengths
