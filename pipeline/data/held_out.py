"""Take the texts of held-out tenants out of all splits, so that training and its validation read none of them."""

from collections import Counter
from typing import NamedTuple

import pandas as pd

from pipeline.params.sources import Split
from pipeline.tasks.task import MIRROR, TENANT, Kept, Task

HELD_OUT = "held_out"  # the name of their table, next to train, validation and test
SHARED = ("position", MIRROR)  # columns that are equal for equal texts, the second one in any order


class Separated(NamedTuple):
    """The splits without held-out tenants, the examples of these, and how many were left out by reason."""

    splits: dict[Split, pd.DataFrame]
    held_out: pd.DataFrame  # rows in the order of their hashes; tenants are numbered from 0
    dropped: Counter[str]


def separate(task: Task, examples: dict[Split, pd.DataFrame]) -> Separated:
    """Take held-out tenants, whose numbers follow those of the others, out of all splits."""
    first = len(task.facts.tenants)
    splits = dict[Split, pd.DataFrame]()
    parts = list[pd.DataFrame]()
    for split, table in examples.items():
        is_held_out = table[TENANT] >= first
        splits[split] = table[~is_held_out]
        parts.append(table[is_held_out])
    together = pd.concat(parts, ignore_index=True)
    distinct = together.drop_duplicates("hash")
    held_out = distinct.sort_values("hash")
    held_out[TENANT] -= first
    duplicates = len(together) - len(distinct)
    dropped = Counter(duplicate=duplicates)
    return Separated(splits, held_out, dropped)


def drop_shared(train: pd.DataFrame, held_out: pd.DataFrame) -> Kept:
    """Return train without texts that a held-out tenant has as well, since they score the model, and their number."""
    kept = train
    for column in SHARED:
        if column in train:
            is_shared = kept[column].isin(held_out[column])
            kept = kept[~is_shared]
    duplicates = len(train) - len(kept)
    return kept, Counter(duplicate=duplicates)
