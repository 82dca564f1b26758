"""From the rows of a source to the examples of a split, and from these to tokens."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from pipeline.params.dataset_row import DatasetRow
from pipeline.tasks.cells import (
    TEXT_COLUMNS,
    Cells,
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
    """Makes examples of rows, and tokens of examples."""

    target: str  # type of the column `label` of examples
    shares_texts = False  # several tenants may have a text, which is then in one split of them all

    def facts_of_rows(self, train: Iterable[Record]) -> Facts:
        """Return what is found in all rows of train, on which its examples depend."""
        return Facts()

    def facts_of_examples(self, train: pd.DataFrame) -> Facts:
        """Return the facts of its rows with what is found in the examples of train after the cut."""
        return self.facts

    @property
    def reads(self) -> tuple[str, ...]:
        """The columns of the source from which examples are made."""
        names = text_columns(self.row)
        for mark in self.row.mark:
            names += mark.columns
        names += self.row.group or ()
        names.append(self.row.label.column)
        return tuple(dict.fromkeys(names))

    @property
    def strata(self) -> list[str]:
        """The columns of examples, of each of whose values a cut takes its share; none for a cut of the whole."""
        return ["label"] if self.row.stratify else []

    def offset(self, stratum: Any, rows: int) -> float:
        """Return where in its interval of a cut the first of the rows of a stratum lies, in [0, 1)."""
        return 0.5

    def parse_cells(self, cells: Cells) -> Cells:
        """Return the cells of a row as they are read; a row that then lacks one is dropped."""
        return cells

    def names_in(self, cells: Cells) -> Iterable[tuple[str, object]]:
        """Return the columns and values of a row of the source that are names: of its classes, labels or tenant."""
        return ()

    @abstractmethod
    def label_of(self, cells: Cells) -> Any:
        """Return the label of a row, none of whose cells is missing; None within the margin.

        Raises:
            ValueError: for a value that the label does not allow.
        """

    def alike(self, cells: Cells, made: Sequence[Mapping[str, str]]) -> str:
        """Return a text that is equal where the texts `made` of rows count as the same."""
        return fold_texts(chain.from_iterable(texts.values() for texts in made))

    def unit_of(self, cells: Cells, number: int) -> int:
        """Return the number of the group or tenant that a row is scored with, or else of the row in its split."""
        if not self.row.group:
            return number
        keys = [plain_text(cells[name]) for name in self.row.group]
        return hash_of("\0".join(keys)) >> 1  # signed, later

    def extend_dedup_key(self, cells: Cells, alike: str) -> str:
        """Return a text that is equal where rows are duplicates, of rows for which `alike` returns this text."""
        return alike

    def examples(self, rows: Sequence[Record], before: int) -> Kept:
        """Return the examples of some rows of a split, before which so many come, and the dropped ones by reason.

        Examples have the columns text, text_pair (for a pair), label, and group or tenant, a number, if they are scored
        by it; hash, equal where all texts are, of one tenant; position, uniform in [0, 1) over what is cut together;
        and, where texts are made of several columns, mirror, equal where these have the same texts in any order.

        Raises:
            ValueError: for the first text or label that is neither missing nor allowed, with its line or row.
        """
        left_out = Counter[str](missing=0, within_margin=0)
        examples = list[tuple[Any, ...]]()
        for number, (where, read) in enumerate(rows, before):
            try:
                cells = self.parse_cells(read)
                is_lacking = any(map(is_missing, cells.values()))
                label = None if is_lacking else self.label_of(cells)
                texts = [] if label is None else texts_of(cells, self.row)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            if is_lacking:
                left_out["missing"] += 1
            elif label is None:
                left_out["within_margin"] += 1
            else:
                examples += _examples_of(self, cells, label, texts, number)
        return _table(examples, self.row, self.target), left_out

    def after_cut(self, examples: pd.DataFrame, split: str) -> Kept:
        """Return what becomes of the examples of a split after the cut, train's first, and the dropped by reason."""
        return examples, Counter()

    def lacks(self, train: pd.DataFrame) -> str:
        """Return what the examples of train lack, so that nothing could be learned; an empty text if nothing."""
        return ""

    def tokenize(
        self, batches: Iterable[pa.Table], tokenizer: "PreTrainedTokenizerBase", max_length: int
    ) -> Iterator[tuple[pa.Table, Numbers]]:
        """Yield for each batch of examples the tokens of those that fit, and the lengths of their whole texts.

        Raises:
            ValueError: if an example cannot become tokens.
        """
        return tokenize(batches, tokenizer, max_length)


def _examples_of(
    preprocessor: Preprocessor,
    cells: Cells,
    label: Any,
    texts: Sequence[Mapping[str, str]],
    number: int,  # number of the row in its split
) -> Iterator[tuple[Any, ...]]:
    """Yield the examples of a row, as `_table` takes them: one for each of its texts."""
    row = preprocessor.row
    alike = preprocessor.alike(cells, texts)
    group = row.group
    together = fold(str(cells[group[0]])) if group else alike  # rows with the same text are all in one split
    position = place_of(together)
    own = preprocessor.extend_dedup_key(cells, alike)
    unit = preprocessor.unit_of(cells, number)
    mirror = _hash_in_any_order(cells, row) if has_mirrors(row) else 0
    for place, part in enumerate(texts):
        digest = hash_of(own if len(texts) == 1 else f"{own}\n{place}")
        of_part = int(label == place) if row.choices else label
        yield *part.values(), of_part, unit, digest, position, mirror


def _hash_in_any_order(cells: Cells, row: DatasetRow) -> int:
    """Return a hash that is equal where rows have the same texts, whichever column each is in."""
    texts = column_texts(cells, row).values()
    return hash_of("\n".join(sorted(map(fold, texts))))


def _table(examples: Sequence[tuple[Any, ...]], row: DatasetRow, target: str) -> pd.DataFrame:
    """Return examples in a table, without the columns that a data set entry does not need."""
    texts = TEXT_COLUMNS[: len(row.text)]
    scored_by = TENANT if row.tenant else GROUP
    table = pd.DataFrame(examples, columns=[*texts, "label", scored_by, "hash", "position", MIRROR])
    types = {
        "label": target,
        scored_by: "int64",
        "hash": "uint64",
        MIRROR: "uint64",
    }
    needless = list[str]()
    if not row.is_grouped and not row.tenant:
        needless.append(scored_by)
    if not has_mirrors(row):
        needless.append(MIRROR)
    return table.astype(types).drop(columns=needless)
