"""A model says which of two rated texts has the larger number.

Pairs are formed within a split, after the splits are cut, so no text occurs in pairs of two splits. Which texts are
paired, and in which order, follows from the hashes of the texts. So neither reveals anything about the numbers, and the
two classes are about equally frequent.
"""

from collections import Counter

import numpy as np
import pandas as pd

from pipeline.params.labels import COMPARED
from pipeline.tasks.classes import ClassesTask
from pipeline.tasks.number import NumberTask


class PairsTask(ClassesTask):
    """Two classes of numbers: the first of two texts has the larger one, or the second."""

    names = COMPARED
    target = "float64"  # of the examples that are paired

    @property
    def columns(self) -> tuple[str, ...]:
        return self.row.text[0], f"{self.row.text[0]}_pair"

    def targets(self, table: pd.DataFrame) -> pd.Series:
        return NumberTask(self.row).targets(table)

    def after_cut(self, examples: pd.DataFrame, split: str) -> tuple[pd.DataFrame, Counter[str]]:
        """Pair each text with the next one in the order of the hashes, unless their numbers are within the margin.

        A text is in up to two pairs, once as the first and once as the second; in test it is in at most one, so that
        pairs are as independent as texts. Of equal texts, only the first is used.
        """
        assert self.row.pairs is not None
        texts = examples.drop_duplicates("hash").sort_values("hash")
        step = 2 if split == "test" else 1
        first, second = (part.reset_index(drop=True) for part in (texts[:-1:step], texts[1::step]))
        difference = first["label"] - second["label"]
        label = (difference < 0).astype(np.int64)  # 0 if the first has the larger number, 1 if the second has
        pairs = pd.DataFrame({"text": first["text"], "text_pair": second["text"], "label": label})
        apart = difference.abs() >= self.row.pairs.margin
        return pairs[apart], Counter(within_margin=int((~apart).sum()), duplicate=len(examples) - len(texts))
