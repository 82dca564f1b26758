"""Pairs of rated texts, to predict which one has the larger number.

Pairs are formed within a split, after the splits are cut, so no text occurs in pairs of two splits. Which texts are
paired, and in which order, follows from the hashes of the texts. So neither reveals anything about the numbers, and the
two classes are about equally frequent.
"""

from typing import NamedTuple

import numpy as np


class Paired(NamedTuple):
    """The paired rows of a table, the labels, and the numbers of dropped rows and pairs."""

    rows: np.ndarray  # (pairs, 2)
    labels: np.ndarray  # (pairs,): 0 if the first has the larger number, 1 if the second has
    within_margin: int
    duplicate: int  # rows with the text of another row


def pair(
    digests: np.ndarray,  # (rows, 2) of uint64: equal for equal texts
    numbers: np.ndarray,  # (rows,)
    margin: float,
    *,
    disjoint: bool,
) -> Paired:
    """Pair each row with the next one in the order of the digests, unless their numbers are within the margin.

    A row is in up to two pairs, once as the first and once as the second; with `disjoint` it is in at most one, so that
    pairs are as independent as rows. Of rows with equal texts, only the first is used.
    """
    _, order = np.unique(digests, axis=0, return_index=True)
    step = 2 if disjoint else 1
    first, second = order[:-1:step], order[1::step]
    differences = numbers[first] - numbers[second]
    apart = np.abs(differences) >= margin
    rows, labels = np.stack([first, second], axis=1)[apart], (differences[apart] < 0).astype(np.int64)
    return Paired(rows, labels, int((~apart).sum()), len(digests) - len(order))
