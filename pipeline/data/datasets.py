"""Load a data set row as three tables: train, validation and test.

This module keeps the scores honest. A split that the source provides is used unchanged. A split that is cut from train
is cut by a hash of the text: whether a sentence is in it depends only on that sentence, not on a seed, the order of the
source or other rows. No sentence of train occurs twice in train, or in another split. Of a pair neither order does,
nor do other texts of several columns in any order, so (a, b) and (b, a) are two examples of one split, but not of two.
Pairs of rated sentences are formed last, within each split.

Train, what is cut from it, and pairs are in the order of hashes, so that their first rows are a random sample. A split
that the source provides has the order of the source, until it is brought into that of hashes.

Texts are never all in memory: those of a few rows at a time are read, hashed and put into a file without a name.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import SEEK_END
from tempfile import TemporaryFile
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline import tasks
from pipeline.core.batches import batched
from pipeline.core.errors import UserError
from pipeline.data import sources
from pipeline.params.dataset_row import DatasetRow
from pipeline.params.sources import Split
from pipeline.tasks import Task
from pipeline.tasks.cells import Record, spelled_alike
from pipeline.tasks.task import EXPECTED, GROUP, MIRROR, TENANT

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
TEXTS = ("text", "text_pair", EXPECTED)  # columns of texts
MIRRORED = "in_another_order"  # the reason for which rows are dropped whose texts another split has in another order


class Texts:
    """Texts in a temporary file, a JSON string a line; a number, the line's place there, stands for each."""

    def __init__(self) -> None:
        self._file = TemporaryFile()  # noqa: SIM115 it lasts as long as the texts

    def put(self, texts: Sequence[str]) -> np.ndarray:  # (texts,)
        """Add texts, and return their numbers."""
        lines = [f"{json.dumps(text, ensure_ascii=False)}\n".encode() for text in texts]
        sizes = np.array([len(line) for line in lines], np.int64)
        first = self._file.seek(0, SEEK_END)
        self._file.writelines(lines)
        return first + sizes.cumsum() - sizes

    def get(self, number: int) -> str:
        """Return the text for which a number stands."""
        self._file.seek(number)
        return str(json.loads(self._file.readline()))


class Examples:
    """The examples of a split: texts by batches, and the columns of numbers."""

    def __init__(self, table: pd.DataFrame, texts: Texts) -> None:
        self.column_names = [name for name in (*TEXTS, "label", GROUP, TENANT) if name in table]
        self._table = table
        self._texts = texts

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, name: str) -> np.ndarray:
        """Return a column of numbers: labels, of which an example may have several, or group or tenant."""
        column = self._table[name]
        is_list = column.dtype == object
        return np.array(column.tolist() if is_list else column)

    def in_order_of_hashes(self) -> "Examples":
        """Return the same examples in an order that does not depend on that of the source; not of pairs, which have it.

        Of equal texts, the one with the lower label comes first.
        """
        by_label = self._table.sort_values("label", kind="stable")
        return Examples(by_label.sort_values("hash", kind="stable"), self._texts)

    def batches(self, size: int, advance: Callable[[int], None] = lambda done: None) -> Iterator[pa.Table]:
        """Yield all columns of so many examples at a time, with texts."""
        for first in range(0, len(self), size):
            rows = self._table[self.column_names].iloc[first : first + size]
            columns = {}
            for name, values in rows.items():
                columns[name] = pa.array([*map(self._texts.get, values)] if name in TEXTS else values)
            yield pa.table(columns)
            advance(len(rows))


class Loaded(NamedTuple):
    """The task with the facts of its data, the tables by split, and what was dropped to make them."""

    task: Task
    splits: dict[str, Examples]
    # Rows that are missing, within_margin (for a row with `pairs`, pairs), duplicate and, if texts are made of several
    # columns, in_another_order: those that are left out of train, or of what is cut from it, for that of another split.
    dropped: dict[str, int]
    conflicting: int  # dropped duplicates whose label differs from the label of the row that is kept


def load(row: DatasetRow, name: str) -> Loaded:
    """Return train, validation and test with the columns text, text_pair (for a pair) and label; and the dropped rows.

    A class is an int, a number a float. A source that cannot be read, a text or label that does not fit the row, an
    empty split, and what train lacks are refused with the row's name, the split, its file and the line or row.
    """
    where = f"{row.where}: {name}"
    texts = Texts()
    task, examples, dropped = _read(row, where, texts)
    train, conflicting = _distinct(examples)
    dropped["duplicate"] = len(examples["train"]) - len(train)
    examples |= _cut(train, task)
    if row.tenant:  # a text that several tenants have: no other may train on what one of them is scored on
        others = [split for split in examples if split != "train"]
        examples, lost = _without_shared(examples, "position", others)
        dropped["duplicate"] += lost
    if task.has_mirrors:
        provided = [split for split in SPLITS if split in row.source.names and split != "train"]
        examples, dropped[MIRRORED] = _without_shared(examples, MIRROR, provided)
    task = task.with_facts(task.facts_of_examples(examples["train"]))
    examples = {split: examples[split] for split in SPLITS if split in examples}
    for split, part in examples.items():
        examples[split], left_out = task.after_cut(part, split)
        dropped.update(left_out)
    _check_filled(task, examples, where, dropped)
    splits = {split: Examples(part, texts) for split, part in examples.items()}
    # Only a row with select_on: test has no validation split; the checkpoint is then chosen on test.
    all_splits: dict[str, Examples] = {split: splits.get(split, splits["test"]) for split in SPLITS}
    return Loaded(task, all_splits, dict(dropped), conflicting)


def _read(row: DatasetRow, where: str, texts: Texts) -> tuple[Task, dict[Split, pd.DataFrame], Counter[str]]:
    """Return the task with the facts of its rows, the examples by split of the source, and how many rows it lost."""
    task = tasks.of(row)
    examples: dict[Split, pd.DataFrame] = {}
    dropped = Counter(missing=0, within_margin=0, duplicate=0)
    for split in SPLITS:
        if split not in row.source.names:
            continue
        file = f"{where}: {split}: {row.source.names[split]}"
        with sources.explained(file):
            if split == "train":
                task = task.with_facts(task.facts_of_rows(sources.read(row.source, split, task.reads, file)))
            rows = spelled_alike(sources.read(row.source, split, task.reads, file), task.names_in)
            examples[split], left_out = _examples(task, rows, texts)
        dropped.update(left_out)
    return task, examples, dropped


def _examples(task: Task, rows: Iterable[Record], texts: Texts) -> tuple[pd.DataFrame, Counter[str]]:
    """Return the examples of a split, with numbers in place of texts, and how many rows were left out by reason."""
    parts = []
    dropped = Counter[str]()
    before = 0
    for batch in batched(rows, sources.ROWS):
        part, left_out = task.examples(batch, before)
        numbers = {name: texts.put(part[name]) for name in TEXTS if name in part}
        parts.append(part.assign(**numbers))
        before += len(batch)
        dropped.update(left_out)
    examples = pd.concat(parts, ignore_index=True)
    if GROUP in examples:
        examples[GROUP], _ = pd.factorize(examples[GROUP])
    return examples, dropped


def _distinct(examples: Mapping[Split, pd.DataFrame]) -> tuple[pd.DataFrame, int]:
    """Return the rows of train without duplicates of other rows, ordered by their hashes; and how many conflicted."""
    train = examples["train"]
    others = [part for split, part in examples.items() if split != "train"]
    whole = pd.concat([part[["hash", "label"]] for part in (*others, train)], ignore_index=True)
    held_out = len(whole) - len(train)
    # Of equal texts the first one stays: of other splits, then of train in its order.
    again = whole.duplicated("hash").to_numpy()[held_out:]
    several = whole[whole.duplicated("hash", keep=False)]
    differs = several["label"] != several.groupby("hash")["label"].transform("first")
    conflicting = int(differs[several.index >= held_out].sum())
    return train[~again].sort_values("hash"), conflicting


def _cut(train: pd.DataFrame, task: Task) -> dict[Split, pd.DataFrame]:
    """Cut splits by position: [0, test) is test, [test, test + validation) is validation, and the rest is train."""
    row = task.row
    position = train["position"]
    if task.strata:  # evenly spaced over the rows of each class, in order, so that shares of a class are exact
        of_class = position.groupby([train[name] for name in task.strata])
        offsets = pd.Series([task.offset(key, len(positions)) for key, positions in of_class])
        place = of_class.rank(method="first") - 1 + offsets.iloc[of_class.ngroup()].to_numpy()
        position = place / of_class.transform("size")
    test = row.cut.get("test", 0.0)
    validation = row.cut.get("validation", 0.0) if row.select_on == "validation" else 0.0
    parts: dict[Split, pd.DataFrame] = {"train": train[position >= test + validation]}
    if test:
        parts["test"] = train[position < test]
    if validation:
        parts["validation"] = train[(position >= test) & (position < test + validation)]
    return parts


def _without_shared(
    examples: Mapping[Split, pd.DataFrame], column: str, kept: Iterable[Split]
) -> tuple[dict[Split, pd.DataFrame], int]:
    """Return splits without rows whose value in a column another split has, and how many rows these are.

    Splits that are `kept` stay as they are: of texts in another order, those that the source provides for scoring.
    Where the others meet, test keeps its rows, then validation; train loses them.
    """
    disjoint = {split: examples[split] for split in kept}
    by_precedence: tuple[Split, ...] = ("test", "validation", "train")
    for split in by_precedence:
        if split in disjoint or split not in examples:
            continue
        elsewhere = pd.concat([part[column] for part in disjoint.values()] or [pd.Series(dtype="uint64")])
        part = examples[split]
        disjoint[split] = part[~part[column].isin(elsewhere)]
    return disjoint, sum(map(len, examples.values())) - sum(map(len, disjoint.values()))


def _check_filled(task: Task, examples: Mapping[Split, pd.DataFrame], where: str, dropped: Mapping[str, int]) -> None:
    names = task.row.source.names
    for split, part in examples.items():
        if part.empty:
            sizes = ", ".join(f"{name} {len(other)}" for name, other in examples.items())
            reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.items())
            file = names.get(split, names["train"])
            own = "; no text has a hash in its share: set stratify, or name a file for it" * (split in task.row.cut)
            raise UserError(f"{where}: {split} is empty; rows: {sizes}; dropped: {reasons}; of {file}{own}")
    lacks = task.lacks(examples["train"])
    if lacks:
        raise UserError(f"{where}: train has {lacks}")
