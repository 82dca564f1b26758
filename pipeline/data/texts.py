"""Texts, checked and turned into tokens: the same for a data set and for a prediction."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

BATCH = 1000  # texts a call of the tokenizer


def is_missing(value: object) -> bool:
    """Return whether a cell holds nothing: None, or white space alone."""
    return value is None or (isinstance(value, str) and not value.strip())


def checked_text(value: object) -> str:
    """Return a value that is a text.

    Raises:
        ValueError: if it is something else, or holds half a character.
    """
    if not isinstance(value, str):
        raise ValueError(f"a text must be text, got {value!r}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"a text must be valid Unicode, got {value!r}") from None
    return value


def encode(
    texts: Sequence[str], pairs: Sequence[str] | None, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> tuple[dict[str, list[list[int]]], list[int]]:
    """Return tokens by column, at most `max_length` a text or pair, and the length of each when it is whole.

    There is no padding and no attention mask: it would be all ones. Of a pair, the longer text is cut first. Only the
    few texts that are too long are encoded twice.
    """
    options = {"return_attention_mask": False, "verbose": False}  # not verbose: no warning about texts to be cut
    encoded = dict(tokenizer(list(texts), None if pairs is None else list(pairs), **options))
    whole = [len(ids) for ids in encoded["input_ids"]]
    for position in (position for position, length in enumerate(whole) if length > max_length):
        pair = None if pairs is None else pairs[position]
        shorter = tokenizer(texts[position], pair, truncation=True, max_length=max_length, **options)
        for name, values in encoded.items():
            values[position] = shorter[name]
    return encoded, whole


class Tokens(NamedTuple):
    """One split or a part of it: what is stored, and how many tokens each whole text has."""

    table: pa.Table
    lengths: np.ndarray  # (rows,), before max_length cuts


def tokenize(
    texts: "Dataset",
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    advance: Callable[[int], None] = lambda done: None,
) -> Tokens:
    """Return the tokens of each row of `texts` (text, perhaps text_pair, label), at most `max_length` each.

    There is no padding and no attention mask: it would be all ones. Of a pair, the longer text is cut first.
    """
    names = [name for name in ("input_ids", "token_type_ids") if name in tokenizer.model_input_names]
    tables: list[pa.Table] = []
    lengths: list[int] = []
    for batch in texts.with_format("arrow").iter(BATCH):
        columns = {name: batch[name].to_pylist() for name in ("text", "text_pair") if name in batch.column_names}
        encoded, whole = encode(columns["text"], columns.get("text_pair"), tokenizer, max_length)
        arrays: dict[str, pa.Array | pa.ChunkedArray] = {
            name: pa.array(encoded[name], pa.list_(pa.int32())) for name in names
        }
        arrays["length"] = pa.array(map(len, encoded["input_ids"]), pa.int32())
        arrays |= {name: batch[name] for name in ("label", *columns)}
        tables.append(pa.table(arrays))
        lengths += whole
        advance(len(batch))
    return Tokens(pa.concat_tables(tables).combine_chunks(), np.array(lengths))
