"""Divide items into lists, for data that do not fit into memory."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")


def iter_batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield items in lists of at most `size`; an empty list if there are none."""
    rest = iter(items)
    batch = list(islice(rest, size))
    while True:
        yield batch
        batch = list(islice(rest, size))
        if not batch:
            return
