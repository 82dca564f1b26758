"""Check and tokenize texts, in the same way for training data and for prediction."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST = 1_000_000  # characters per text: a long novel
AT_ONCE = 1_000_000  # characters tokenized together: a tokenizer takes 250 bytes for each


def is_missing(value: object) -> bool:
    """Return whether a cell is empty: None, or only whitespace."""
    return value is None or (isinstance(value, str) and not value.strip())


def checked_text(value: object) -> str:
    """Return a value if it is a valid text.

    Raises:
        ValueError: if it is not a string, is not valid Unicode, or is too long.
    """
    if not isinstance(value, str):
        raise ValueError(f"a text must be text, got {value!r}")
    if len(value) > LONGEST:
        raise ValueError(f"a text of {len(value):,} characters; at most {LONGEST:,} are allowed")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"a text must be valid Unicode, got {value!r}") from None
    return value


def encode(
    texts: Sequence[str], pairs: Sequence[str] | None, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> tuple[dict[str, list[list[int]]], list[int]]:
    """Return tokens by column, at most `max_length` per text or pair, and the length of each before truncation.

    There is no padding, hence no attention mask: it would be all ones. In a pair, the longer text is truncated first.
    Only the few texts that are too long are encoded twice.
    """
    encoded: dict[str, list[list[int]]] = {}
    whole: list[int] = []
    for part in _parts(texts, pairs):
        found = _encode(texts[part], None if pairs is None else pairs[part], tokenizer, max_length, whole)
        for name, values in found.items():
            encoded.setdefault(name, []).extend(values)
    return encoded, whole


def _parts(texts: Sequence[str], pairs: Sequence[str] | None) -> Iterator[slice]:
    """Yield the positions that are tokenized together."""
    begin = size = 0
    for position, text in enumerate(texts):
        size += len(text) + (0 if pairs is None else len(pairs[position]))
        if size >= AT_ONCE:
            yield slice(begin, position + 1)
            begin, size = position + 1, 0
    if begin < len(texts):
        yield slice(begin, len(texts))


def _encode(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    lengths: list[int],
) -> dict[str, list[list[int]]]:
    """Return the tokens by column, and append the full lengths."""
    options = {"return_attention_mask": False, "verbose": False}  # not verbose: no warning about long texts
    encoded = dict(tokenizer(list(texts), None if pairs is None else list(pairs), **options))
    whole = [len(ids) for ids in encoded["input_ids"]]
    for position in (position for position, length in enumerate(whole) if length > max_length):
        pair = None if pairs is None else pairs[position]
        shorter = tokenizer(texts[position], pair, truncation=True, max_length=max_length, **options)
        for name, values in encoded.items():
            values[position] = shorter[name]
    lengths += whole
    return encoded
