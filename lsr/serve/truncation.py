"""Truncate a tokenized text as transformers does, without changing the tokenizer, which other threads use."""

from collections.abc import Sequence
from typing import Any

Inputs = dict[str, list[int]]  # input_ids and what else the tokenizer returns, (tokens,) each


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
    owners = encoded.sequence_ids(number)
    places: list[list[int]] = [[], []]
    kept = []
    for place, owner in enumerate(owners):
        if owner is None:  # a special token that the tokenizer adds
            kept.append(place)
        else:
            places[owner].append(place)
    room = length - len(kept)
    if room < 0:
        raise ValueError(f"the tokenizer adds {len(kept)} tokens; this adapter reads at most {length}")
    first, second = places
    sizes = count_kept(len(first), len(second), room)
    for own, size in zip(places, sizes, strict=True):
        kept += own[len(own) - size :] if tokenizer.truncation_side == "left" else own[:size]
    kept.sort()
    return {name: [values[number][place] for place in kept] for name, values in encoded.items()}


def count_kept(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how many tokens of two texts are kept in `room` tokens, as transformers' `longest_first` does.

    The shorter text stays whole if it takes at most half of the room. Otherwise each text has half, and the one that is
    longer, or the second of equal ones, has the token that is left.
    """
    shorter = min(first, second)
    longer = max(first, second)
    if shorter + longer > room:
        shorter = min(shorter, room // 2)
        longer = room - shorter
    return (shorter, longer) if first <= second else (longer, shorter)
