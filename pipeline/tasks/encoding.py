"""Tokenize texts, in the same way for training and for prediction."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
COLUMN_TYPES = {"input_ids": pa.int32(), "token_type_ids": pa.int8()}
# Options of the tokenizer; it is not verbose, because it would warn about long texts.
OPTIONS: dict[str, Any] = {"return_attention_mask": False, "verbose": False}


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
    for batch in batches:
        columns = [batch[name] for name in TEXT_COLUMNS if name in batch.column_names]
        texts = [column.to_pylist() for column in columns]
        encoded = tokenizer(*texts, **OPTIONS)
        whole = [len(ids) for ids in encoded["input_ids"]]
        if 0 in whole:  # it would be classified at a padding position
            text = texts[0][whole.index(0)]
            raise ValueError(f"the tokenizer makes no token of the text {text[:SHOWN]!r}")
        names = [name for name in COLUMN_TYPES if name in tokenizer.model_input_names]
        for number, length in enumerate(whole):
            if length <= max_length:
                continue
            own = [column[number] for column in texts]  # these few alone are encoded twice
            shorter = tokenizer(*own, truncation=True, max_length=max_length, **OPTIONS)
            for name in names:
                encoded[name][number] = shorter[name]
        tokens = {name: encoded[name] for name in names}
        table = _build_table(tokens, batch)
        yield table, np.array(whole)


def _build_table(tokens: Mapping[str, Sequence[Sequence[int]]], batch: pa.Table) -> pa.Table:
    """Return the tokens and their number, followed by the columns of the batch, the label first."""
    arrays = dict[str, Any]()
    for name, rows in tokens.items():
        numbers = pa.list_(COLUMN_TYPES[name])
        arrays[name] = pa.array(rows, numbers)
    lengths = map(len, tokens["input_ids"])
    arrays["length"] = pa.array(lengths, pa.int32())
    others = list(batch.column_names)
    others.sort(key=lambda name: name != "label")
    for name in others:
        arrays[name] = batch[name]
    return pa.table(arrays)


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
