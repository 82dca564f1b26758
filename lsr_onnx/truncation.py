"""Truncate a tokenized text as transformers does, without the tokenizer, which other threads use."""

from collections.abc import Sequence

Inputs = dict[str, list[int]]  # input_ids and what else the tokenizer returns, (tokens,) each


def cut(
    inputs: Inputs,
    owners: Sequence[int | None],
    length: int,
    side: str,
) -> Inputs:
    """Return the inputs of a text or a pair, truncated to `length` tokens on a side.

    `owners` has for each token the number of its text, or None for a special token that the tokenizer adds. These stay;
    of a pair, the longer text is truncated first.

    Raises:
        ValueError: if there is no room for the special tokens.
    """
    special = find_places(owners, None)
    first = find_places(owners, 0)
    second = find_places(owners, 1)
    room = length - len(special)
    if room < 0:
        raise ValueError(f"the tokenizer adds {len(special)} tokens; this adapter reads at most {length}")
    first_kept, second_kept = count_kept(len(first), len(second), room)
    kept = [
        *special,
        *cut_side(first, first_kept, side),
        *cut_side(second, second_kept, side),
    ]
    kept.sort()
    shorter = {}
    for name, values in inputs.items():
        shorter[name] = [values[place] for place in kept]
    return shorter


def find_places(owners: Sequence[int | None], wanted: int | None) -> list[int]:
    """Return the places of the tokens of a text, or of special tokens."""
    return [place for place, owner in enumerate(owners) if owner == wanted]


def cut_side(places: Sequence[int], count: int, side: str) -> Sequence[int]:
    """Return this many places, without those on a side."""
    if side == "left":
        return places[len(places) - count :]
    return places[:count]


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
    if first <= second:
        return shorter, longer
    return longer, shorter
