"""Pairs of rated texts, to tell which one has the greater number.

They are made of the rows of one split, after the splits are cut: a text that is in one split alone is in the pairs of
that split alone. Who meets whom and who comes first follow from the hashes of the texts, so neither says anything of
the numbers, and the two classes are about as frequent.
"""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from datasets import Dataset

BATCH = 10_000  # pairs that are written at once
SCHEMA = pa.schema({"text": pa.string(), "text_pair": pa.string(), "label": pa.int64()})


class Paired(NamedTuple):
    """Which rows of a table meet, what is right, and how many rows and pairs are left out."""

    rows: np.ndarray  # (pairs, 2)
    labels: np.ndarray  # (pairs,): 0 where the first has the greater number, 1 where the second has
    within_margin: int
    duplicate: int  # rows whose text another row has


def pair(
    digests: np.ndarray,  # (rows, 2) of uint64: equal for equal texts
    numbers: np.ndarray,  # (rows,)
    margin: float,
    *,
    disjoint: bool,
) -> Paired:
    """Pair each row with the one that follows in the order of the digests, unless their numbers are within the margin.

    A row is then in up to two pairs, once as the first and once as the second; with `disjoint` it is in one at most, so
    that pairs are as independent as rows. Of rows with equal texts, the first one stands for all.
    """
    order = np.lexsort(digests.T[::-1])
    is_new = np.ones(len(order), bool)
    is_new[1:] = (digests[order][1:] != digests[order][:-1]).any(axis=1)
    order = order[is_new]
    step = 2 if disjoint else 1
    first, second = order[:-1:step], order[1::step]
    differences = numbers[first] - numbers[second]
    apart = np.abs(differences) >= margin
    rows, labels = np.stack([first, second], axis=1)[apart], (differences[apart] < 0).astype(np.int64)
    return Paired(rows, labels, int((~apart).sum()), int((~is_new).sum()))


def write(paired: Paired, texts: "Dataset", path: Path) -> None:
    """Write the pairs as an Arrow file with the columns text, text_pair and label; `texts` is the table of the rows."""
    table = texts.select_columns("text").with_format("arrow")
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, SCHEMA) as writer:
        for at in range(0, len(paired.rows), BATCH):
            rows, labels = paired.rows[at : at + BATCH], paired.labels[at : at + BATCH]
            first, second = (table.select(chosen)[:]["text"] for chosen in rows.T)
            writer.write_table(pa.table([first, second, labels], schema=SCHEMA))
