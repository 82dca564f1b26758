"""Tokenize texts, in the same way for training and for prediction."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.core.batches import iter_batches
from pipeline.tasks.cells import TEXT_COLUMNS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Part = tuple[pa.Table, np.ndarray]  # tokens, and lengths of whole texts, (rows,)
BATCH = 1000  # texts per call of the tokenizer
SHOWN = 40  # characters of a text in a message
TOGETHER = 10  # such batches become one of a file


def tokenize(
    batches: Iterable[pa.Table],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
) -> Iterator[Part]:
    """Yield the tokens of each batch of texts (text, perhaps text_pair), at most `max_length`, and full lengths.

    Nothing is padded, so there is no attention mask (it would be all ones). In a pair, the longer text is truncated
    first.

    Raises:
        ValueError: if a text has no token.
    """
    column_types = {"input_ids": pa.int32(), "token_type_ids": pa.int8()}
    needed = tokenizer.model_input_names
    names = [name for name in column_types if name in needed]
    options: Any = {"return_attention_mask": False, "verbose": False}  # not verbose: no warning about long texts
    for batch in batches:
        columns = [batch[name] for name in TEXT_COLUMNS if name in batch.column_names]
        given: Any = [column.to_pylist() for column in columns]
        encoded = tokenizer(*given, **options)
        whole = [len(ids) for ids in encoded["input_ids"]]
        if 0 in whole:  # it would be classified at a padding position
            text = given[0][whole.index(0)]
            raise ValueError(f"the tokenizer makes no token of the text {text[:SHOWN]!r}")
        for number, length in enumerate(whole):
            if length <= max_length:
                continue
            texts = [column[number] for column in given]  # these few alone are encoded twice
            shorter = tokenizer(*texts, truncation=True, max_length=max_length, **options)
            for name in names:
                encoded[name][number] = shorter[name]
        arrays = dict[str, Any]()
        for name in names:
            numbers = pa.list_(column_types[name])
            arrays[name] = pa.array(encoded[name], numbers)
        lengths = map(len, encoded["input_ids"])
        arrays["length"] = pa.array(lengths, pa.int32())
        others = list(batch.column_names)
        others.sort(key=lambda name: name != "label")
        for name in others:
            arrays[name] = batch[name]
        table = pa.table(arrays)
        yield table, np.array(whole)


def write(tokens: Iterable[Part], path: Path) -> np.ndarray:
    """Write tokens to an Arrow file, which readers memory-map; return the lengths that come with them."""
    lengths = list[np.ndarray]()
    writer = None
    with pa.OSFile(str(path), "wb") as file, ExitStack() as stack:
        for some in iter_batches(tokens, TOGETHER):
            tables, of_tables = zip(*some, strict=True)
            lengths += of_tables
            table = pa.concat_tables(tables).combine_chunks()
            if writer is None:
                stream = pa.ipc.new_stream(file, table.schema)
                writer = stack.enter_context(stream)
            writer.write_table(table, max_chunksize=TOGETHER * BATCH)
    return np.concatenate(lengths)
