"""Preprocessing: make examples from the rows of a source, and tokens from examples."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from pipeline.params.dataset_entry import DatasetEntry
from pipeline.tasks.cells import (
    TEXT_COLUMNS,
    Cells,
    Names,
    Record,
    column_texts,
    fold,
    fold_texts,
    has_mirrors,
    hash_of,
    is_missing,
    place_of,
    plain_text,
    text_columns,
    texts_of,
)
from pipeline.tasks.encoding import tokenize
from pipeline.tasks.facts import Facts
from pipeline.tasks.task import GROUP, MIRROR, TENANT, Kept, Numbers, Part

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Preprocessor(Part, ABC):
    """Makes examples from rows, and tokens from examples."""

    target: str  # type of the column `label` of examples
    shares_texts = False  # several tenants may have a text, which is then in one split of them all

    def facts_of_rows(self, train: Iterable[Record]) -> Facts:
        """Compute the facts on which examples depend from all rows of train."""
        return Facts()

    def facts_of_examples(self, train: pd.DataFrame) -> Facts:
        """Return the facts of the rows of train with those of its examples, which are known once train is split."""
        return self.facts

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns of the source that examples need."""
        names = text_columns(self.entry)
        for span in self.entry.span:
            names += span.columns
        names += self.entry.group or ()
        names.append(self.entry.label.column)
        return tuple(dict.fromkeys(names))

    @property
    def strata(self) -> list[str]:
        """The columns of examples by which the split is stratified; empty for none."""
        return ["label"] if self.entry.stratify else []

    def offset(self, stratum: Any, rows: int) -> float:
        """Return the position in [0, 1) of a stratum's first row in its interval, when data are split."""
        return 0.5

    def parse_cells(self, cells: Cells) -> Cells:
        """Parse the cells of a row; the row is dropped if one is then missing."""
        return cells

    def names_in(self, cells: Cells) -> Names:
        """Return the columns and values of a source row that are names of classes, labels or tenants."""
        return ()

    @abstractmethod
    def label_of(self, cells: Cells) -> Any:
        """Return the label of a complete row; None if it is within the margin and must be dropped.

        Raises:
            ValueError: for a value that the label does not allow.
        """

    def alike(self, cells: Cells, made: Sequence[Mapping[str, str]]) -> str:
        """Return a key that is equal for rows whose texts `made` count as the same."""
        return fold_texts(chain.from_iterable(texts.values() for texts in made))

    def unit_of(self, cells: Cells, number: int) -> int:
        """Return the number of the group or tenant with which a row is scored, or else its number in the split."""
        if not self.entry.group:
            return number
        keys = [plain_text(cells[name]) for name in self.entry.group]
        return hash_of("\0".join(keys)) >> 1  # signed, later

    def extend_dedup_key(self, cells: Cells, alike: str) -> str:
        """Return a key that is equal for duplicate rows, given the row's key `alike`."""
        return alike

    def examples(self, rows: Sequence[Record], before: int) -> Kept:
        """Return the examples of rows of a split, after `before` earlier rows, and the dropped rows by reason.

        Examples have the columns text, text_pair (for a pair), label, and the number of the group or tenant if they are
        scored by it; hash, equal if all texts and the tenant are equal; position, uniform in [0, 1) over the rows that
        are split together; and, for texts from several columns, mirror, equal if the columns have the same texts in any
        order.

        Raises:
            ValueError: for the first invalid text or label, with its line or row.
        """
        left_out = Counter[str](missing=0, within_margin=0)
        examples = list[tuple[Any, ...]]()
        for number, (where, read) in enumerate(rows, before):
            try:
                cells = self.parse_cells(read)
                is_lacking = any(map(is_missing, cells.values()))
                label = None if is_lacking else self.label_of(cells)
                texts = [] if label is None else texts_of(cells, self.entry)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            if is_lacking:
                left_out["missing"] += 1
            elif label is None:
                left_out["within_margin"] += 1
            else:
                examples += _examples_of(self, cells, label, texts, number)
        return _table(examples, self.entry, self.target), left_out

    def finish_split(self, examples: pd.DataFrame, split: str) -> Kept:
        """Finish the examples of a split (train first), and return them and the number of dropped ones by reason."""
        return examples, Counter()

    def find_train_problem(self, train: pd.DataFrame) -> str:
        """Return why nothing can be learned from the examples of train; empty if something can."""
        return ""

    def tokenize(
        self, batches: Iterable[pa.Table], tokenizer: "PreTrainedTokenizerBase", max_length: int
    ) -> Iterator[tuple[pa.Table, Numbers]]:
        """Yield for each batch of examples the tokens of those that fit, and the untruncated lengths.

        Raises:
            ValueError: if an example cannot be tokenized.
        """
        return tokenize(batches, tokenizer, max_length)


def _examples_of(
    preprocessor: Preprocessor,
    cells: Cells,
    label: Any,
    texts: Sequence[Mapping[str, str]],
    number: int,  # number of the row in its split
) -> Iterator[tuple[Any, ...]]:
    """Yield the examples of a row in the form that `_table` needs: one per text."""
    entry = preprocessor.entry
    alike = preprocessor.alike(cells, texts)
    group = entry.group
    together = fold(plain_text(cells[group[0]])) if group else alike  # rows with the same text are all in one split
    position = place_of(together)
    own = preprocessor.extend_dedup_key(cells, alike)
    unit = preprocessor.unit_of(cells, number)
    mirror = _hash_in_any_order(cells, entry) if has_mirrors(entry) else 0
    for place, part in enumerate(texts):
        digest = hash_of(own if len(texts) == 1 else f"{own}\n{place}")
        of_part = int(label == place) if entry.choices else label
        yield *part.values(), of_part, unit, digest, position, mirror


def _hash_in_any_order(cells: Cells, entry: DatasetEntry) -> int:
    """Return a hash that is equal for rows with the same texts in any order of columns."""
    texts = column_texts(cells, entry).values()
    return hash_of("\n".join(sorted(map(fold, texts))))


def _table(examples: Sequence[tuple[Any, ...]], entry: DatasetEntry, target: str) -> pd.DataFrame:
    """Convert examples to a table, without columns that the data set entry does not need."""
    texts = TEXT_COLUMNS[: len(entry.text)]
    scored_by = TENANT if entry.tenant else GROUP
    table = pd.DataFrame(examples, columns=[*texts, "label", scored_by, "hash", "position", MIRROR])
    types = {
        "label": target,
        scored_by: "int64",
        "hash": "uint64",
        MIRROR: "uint64",
    }
    needless = list[str]()
    if not entry.is_grouped and not entry.tenant:
        needless.append(scored_by)
    if not has_mirrors(entry):
        needless.append(MIRROR)
    return table.astype(types).drop(columns=needless)
