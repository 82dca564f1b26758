"""Texts, checked and turned into tokens: the same for a data set and for a prediction."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
