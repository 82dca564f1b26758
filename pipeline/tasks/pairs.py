"""A model says which of two rated texts has the larger number.

Pairs are formed within a split, after the splits are cut, so no text occurs in pairs of two splits. Which texts are
paired, and in which order, follows from the hashes of the texts. So neither reveals anything about the numbers, and the
two classes are about equally frequent.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.params.labels import COMPARED
from pipeline.tasks.classes import ClassesTask
from pipeline.tasks.examples import Examples, Split
from pipeline.tasks.number import NumberTask
from pipeline.tasks.task import Numbers


class PairsTask(ClassesTask):
    """Two classes of numbers: the first of two texts has the larger one, or the second."""

    names = COMPARED
    target = pa.float64()  # of the examples that are paired

    @property
    def columns(self) -> tuple[str, ...]:
        return self.row.text[0], f"{self.row.text[0]}_pair"

    def targets(self, table: pd.DataFrame) -> pd.Series:
        return NumberTask(self.row).targets(table)

    def chosen(self, examples: Examples, rows: Numbers, split: str) -> Split:
        assert self.row.pairs is not None
        margin, is_test = self.row.pairs.margin, split == "test"
        made = pair(examples.digests[rows], examples.labels[rows], margin, disjoint=is_test)
        both = (examples.table["text"].take(pa.array(column)) for column in rows[made.rows].T)
        table = pa.table(dict(zip(("text", "text_pair", "label"), (*both, made.labels), strict=True)))
        dropped = Counter(within_margin=made.within_margin, duplicate=made.duplicate)
        return Split(table, np.arange(len(made.labels)), made.labels, dropped)


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
