"""Truncate a tokenized text as transformers does, without changing the tokenizer, which other threads use."""

from collections.abc import Sequence
from typing import Any

from lsr_onnx.truncation import Inputs, cut


def truncate(
    tokenizer: Any,
    encoded: Any,
    number: int,
    texts: Sequence[str],
    length: int,
) -> Inputs:
    """Return the inputs of a text or a pair, truncated to `length` tokens as by `truncation=True`.

    `encoded` is what the tokenizer returns for a batch in which the text is at `number`. Special tokens stay; of a
    pair, the longer text is truncated first. A fast tokenizer stores the length of a call, which would truncate texts
    of other threads; a tokenizer in Python does not.

    Raises:
        ValueError: if there is no room for the special tokens.
    """
    if not encoded.is_fast:
        return dict(tokenizer(*texts, truncation=True, max_length=length, verbose=False))
    inputs = {name: values[number] for name, values in encoded.items()}
    return cut(inputs, encoded.sequence_ids(number), length, tokenizer.truncation_side)
