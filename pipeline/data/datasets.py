"""Load a data set entry as three tables: train, validation and test.

This module keeps the scores honest. A split that the source provides is used unchanged. A split that is cut from train
is cut by a hash of the text: whether a sentence is in it depends only on that sentence, not on a seed, the order of the
source or other rows. No sentence of train occurs twice in train, or in another split. The same holds for pairs in
either order, and for texts of several columns in any order: (a, b) and (b, a) may be two examples of one split, but not
of two splits. Pairs of rated sentences are formed last, within each split.

Train, splits cut from it, and pairs are sorted by hashes, so that their first rows are a random sample. A split that
the source provides has the order of the source, until it is sorted by hashes.

Texts are never all in memory: they are read in batches of a few rows, hashed, and written to an unnamed file.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import SEEK_END
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline import tasks
from pipeline.core.batches import iter_batches
from pipeline.core.errors import UserError
from pipeline.data import files, held_out, sources
from pipeline.params.dataset_entry import DatasetEntry
from pipeline.params.sources import Split
from pipeline.tasks import Task
from pipeline.tasks.cells import Record, has_mirrors, unify_spellings
from pipeline.tasks.task import EXPECTED, GROUP, MIRROR, TENANT

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
BY_PRECEDENCE: tuple[Split, ...] = ("test", "validation", "train")  # the first of the splits that share a text keeps it
TEXTS = ("text", "text_pair", EXPECTED)  # columns of texts
Tables = dict[Split, pd.DataFrame]  # tables of examples, with numbers in place of texts
Dropped = Counter[str]  # how many rows are left out, by reason
MIRRORED = "in_another_order"  # the reason for which rows are dropped whose texts another split has in another order


class Texts:
    """Texts in a temporary file, one JSON string per line; each is identified by the position of its line."""

    def __init__(self) -> None:
        self._file = TemporaryFile()  # noqa: SIM115 it lasts as long as the texts

    def put(self, texts: Sequence[str]) -> np.ndarray:  # (texts,)
        """Add texts, and return their numbers."""
        lines = list[bytes]()
        for text in texts:
            line = json.dumps(text, ensure_ascii=False)
            lines.append(f"{line}\n".encode())
        lengths = list(map(len, lines))
        sizes = np.array(lengths, np.int64)
        first = self._file.seek(0, SEEK_END)
        self._file.writelines(lines)
        ends = first + sizes.cumsum()
        return ends - sizes

    def get(self, number: int) -> str:
        """Return the text with a number."""
        self._file.seek(number)
        line = self._file.readline()
        return str(json.loads(line))


class Examples:
    """The examples of a split: texts by batches, and the columns of numbers."""

    def __init__(self, table: pd.DataFrame, texts: Texts) -> None:
        names = (*TEXTS, "label", GROUP, TENANT)
        self.column_names = [name for name in names if name in table]
        self._table = table
        self._texts = texts

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, name: str) -> np.ndarray:
        """Return a column of numbers: labels (one or several per example), groups or tenants."""
        column = self._table[name]
        is_of_lists = column.dtype == object
        values = column.tolist() if is_of_lists else column
        return np.array(values)

    def in_order_of_hashes(self) -> "Examples":
        """Return the examples ordered by their hashes, independent of the source's order; pairs already are.

        Among equal texts, lower labels come first.
        """
        by_label = self._table.sort_values("label", kind="stable")
        by_hash = by_label.sort_values("hash", kind="stable")
        return Examples(by_hash, self._texts)

    def batches(
        self,
        size: int,
        advance: Callable[[int], None] = lambda done: None,
    ) -> Iterator[pa.Table]:
        """Yield tables of this many examples with all columns, including texts."""
        table = self._table[self.column_names]
        for first in range(0, len(self), size):
            end = first + size
            rows = table.iloc[first:end]
            columns = dict[Any, pa.Array]()
            for name, values in rows.items():
                columns[name] = self._cells(name, values)
            yield pa.table(columns)
            advance(len(rows))

    def _cells(self, name: Any, values: pd.Series) -> pa.Array:
        """Return the cells of a column, with numbers of texts replaced by the texts."""
        if name not in TEXTS:
            return pa.array(values)
        texts = [self._texts.get(number) for number in values]
        return pa.array(texts)


class EmptySplitError(UserError):
    """A split has no rows."""


class Loaded(NamedTuple):
    """The task with the facts of its data, the tables by split, and the numbers of dropped rows."""

    task: Task
    splits: dict[str, Examples]
    # Rows that are missing, within_margin (for an entry with `pairs`, pairs), duplicate and, if texts are made of
    # several columns, in_another_order: left out of train, or of what is cut from it, for a row of another split.
    dropped: dict[str, int]
    conflicting: int  # dropped duplicates whose label differs from the label of the row that is kept
    shared: int  # texts of test that validation has, too: splits that the source provides are left as they are

    def describe_shared(self) -> str:
        """Return a line on the texts that validation and test share."""
        reason = "which chooses the checkpoint and thresholds, so that scores may be too high"
        return f"{self.shared:,} texts of test are in validation, too, {reason}; remove them from either file"


def load(entry: DatasetEntry, name: str) -> Loaded:
    """Load train, validation and test with the columns text, text_pair (for a pair) and label; count dropped rows.

    Classes are int, numbers float. The texts of held-out tenants, if there are any, are a further split, `held_out`. An
    unreadable source, an invalid text or label, an empty split and an unusable train split are rejected with the
    entry's name, the split, its file and the line or row.
    """
    where = f"{entry.where}: {name}"
    texts = Texts()
    task, examples, dropped = _read(entry, where, texts)
    apart = None
    if task.facts.held_out:
        examples, apart, left_out = held_out.separate(task, examples)
        dropped.update(left_out)
    train, conflicting = _distinct(examples)
    dropped["duplicate"] += len(examples["train"]) - len(train)
    examples |= _cut(train, task)
    examples, left_out = _disjoint(examples, task)
    dropped.update(left_out)
    if apart is not None:
        examples["train"], left_out = held_out.drop_shared(examples["train"], apart)
        dropped.update(left_out)
    _check_filled(task, examples, where, dropped)  # an empty train has no facts
    facts = task.preprocessor.facts_of_examples(examples["train"])
    task = task.with_facts(facts)
    kept, left_out = _finish(task, examples)
    dropped.update(left_out)
    _check_filled(task, kept, where, dropped)
    _check_train(task, kept["train"], where)
    splits = _add_texts(kept, texts)
    if apart is not None:
        splits[held_out.HELD_OUT] = Examples(apart, texts)
    return Loaded(task, splits, dict(dropped), conflicting, _count_shared(examples))


def _finish(task: Task, examples: Tables) -> tuple[Tables, Dropped]:
    """Return the finished examples of each split, and the dropped ones by reason."""
    dropped = Dropped()
    kept = Tables()
    for split in SPLITS:
        if split in examples:
            kept[split], left_out = task.preprocessor.finish_split(examples[split], split)
            dropped.update(left_out)
    return kept, dropped


def _count_shared(examples: Tables) -> int:
    """Return the number of texts of test that validation has, too."""
    if "validation" not in examples:
        return 0
    is_shared = examples["test"]["hash"].isin(examples["validation"]["hash"])
    return int(is_shared.sum())


def _add_texts(tables: Tables, texts: Texts) -> dict[str, Examples]:
    """Return the examples of each split with their texts."""
    splits = dict[str, Examples]()
    for split in SPLITS:
        # Only an entry with select_on: test has no validation split; the checkpoint is then chosen on test.
        part = tables.get(split, tables["test"])
        splits[split] = Examples(part, texts)
    return splits


def _read(
    entry: DatasetEntry,
    where: str,
    texts: Texts,
) -> tuple[Task, Tables, Dropped]:
    """Read the source: return the task with the facts of its rows, the examples by split, and the dropped rows."""
    task = tasks.of(entry)
    examples = Tables()
    dropped = Dropped(missing=0, within_margin=0, duplicate=0)
    names = entry.source.names
    for split in SPLITS:
        if split not in names:
            continue
        file = f"{where}: {split}: {names[split]}"
        with sources.wrap_reading_errors(file):
            if split == "train":
                rows = sources.read(entry.source, split, task.preprocessor.reads, file)
                facts = task.preprocessor.facts_of_rows(rows)
                task = task.with_facts(facts)
            rows = sources.read(entry.source, split, task.preprocessor.reads, file)
            alike = unify_spellings(rows, task.preprocessor.names_in)
            examples[split], left_out = _examples(task, alike, texts)
        dropped.update(left_out)
    return task, examples, dropped


def _examples(
    task: Task,
    rows: Iterable[Record],
    texts: Texts,
) -> tuple[pd.DataFrame, Dropped]:
    """Return the examples of a split, with numbers in place of texts, and the dropped rows by reason."""
    parts = list[pd.DataFrame]()
    dropped = Dropped()
    before = 0
    for batch in iter_batches(rows, files.ROWS):
        part, left_out = task.preprocessor.examples(batch, before)
        numbers = dict[str, np.ndarray]()
        for name in TEXTS:
            if name in part:
                numbers[name] = texts.put(part[name])
        part = part.assign(**numbers)
        parts.append(part)
        before += len(batch)
        dropped.update(left_out)
    examples = pd.concat(parts, ignore_index=True)
    if GROUP in examples:
        examples[GROUP], _ = pd.factorize(examples[GROUP])
    return examples, dropped


def _distinct(examples: Tables) -> tuple[pd.DataFrame, int]:
    """Return the rows of train without duplicates, ordered by hashes, and the number with conflicting labels."""
    train = examples["train"]
    compared = ["hash", "label"]
    parts = list[pd.DataFrame]()
    for split, part in examples.items():
        if split != "train":
            parts.append(part[compared])
    parts.append(train[compared])
    whole = pd.concat(parts, ignore_index=True)
    held_out = len(whole) - len(train)
    # Of equal texts the first one stays: of other splits, then of train in its order.
    is_again = whole.duplicated("hash").to_numpy()
    is_left_out = is_again[held_out:]
    kept = train[~is_left_out].sort_values("hash")
    is_equal = whole.duplicated("hash", keep=False)
    equal = whole[is_equal]
    labels = equal["label"]
    first_labels = labels.groupby(equal["hash"]).transform("first")
    differs = labels != first_labels
    of_train = equal.index >= held_out
    conflicting = differs[of_train].sum()
    return kept, int(conflicting)


def _cut(train: pd.DataFrame, task: Task) -> Tables:
    """Split by position: [0, test) is test, [test, test + validation) is validation, and the rest is train."""
    entry = task.entry
    position = train["position"]
    if task.preprocessor.strata:
        position = _even_positions(train, task)
    test = entry.split.get("test", 0.0)
    validation = 0.0
    if entry.select_on == "validation":
        validation = entry.split.get("validation", 0.0)
    held_out = test + validation
    parts: Tables = {"train": train[position >= held_out]}
    if test:
        parts["test"] = train[position < test]
    if validation:
        is_after_test = position >= test
        is_before_train = position < held_out
        parts["validation"] = train[is_after_test & is_before_train]
    return parts


def _even_positions(train: pd.DataFrame, task: Task) -> pd.Series:
    """Return positions evenly spaced over the rows of each class, in order, so that each class is split exactly."""
    strata = task.preprocessor.strata
    keys = [train[name] for name in strata]
    of_class = train["position"].groupby(keys)
    offsets = list[float]()
    for key, positions in of_class:
        offset = task.preprocessor.offset(key, len(positions))
        offsets.append(offset)
    class_numbers = of_class.ngroup()
    class_offsets = pd.Series(offsets)
    row_offsets = class_offsets.iloc[class_numbers].to_numpy()
    rank = of_class.rank(method="first")
    place = rank - 1 + row_offsets
    sizes = of_class.transform("size")
    return place / sizes


def _disjoint(examples: Tables, task: Task) -> tuple[Tables, Dropped]:
    """Return splits without texts of other splits, also in another order or of another tenant, and their number."""
    dropped = Dropped()
    if task.preprocessor.shares_texts:  # no tenant may train on a text that another one of them is scored on
        others = [*examples]
        others.remove("train")
        examples, dropped["duplicate"] = _without_shared(examples, "position", others)
    if has_mirrors(task.entry):
        provided = [*task.entry.source.names]
        provided.remove("train")
        examples, dropped[MIRRORED] = _without_shared(examples, MIRROR, provided)
    return examples, dropped


def _without_shared(
    examples: Tables,
    column: str,
    kept: Iterable[Split],
) -> tuple[Tables, int]:
    """Return splits without rows whose value in a column occurs in another split, and the number of these rows.

    Splits in `kept` are unchanged: for texts in another order, the splits that the source provides for scoring. Between
    the others, test keeps its rows first, then validation, then train.
    """
    disjoint = {split: examples[split] for split in kept}
    for split in BY_PRECEDENCE:
        if split in disjoint or split not in examples:
            continue
        part = examples[split]
        for other in disjoint.values():
            is_shared = part[column].isin(other[column])
            part = part[~is_shared]
        disjoint[split] = part
    count = sum(map(len, examples.values()))
    kept_count = sum(map(len, disjoint.values()))
    return disjoint, count - kept_count


def _check_filled(
    task: Task,
    examples: Tables,
    where: str,
    dropped: Mapping[str, int],
) -> None:
    """Check that no split is empty.

    Raises:
        EmptySplitError: if one is; states the rows of each split, the dropped rows by reason, and what to do.
    """
    names = task.entry.source.names
    sizes = {split: len(examples[split]) for split in SPLITS if split in examples}
    for split, size in sizes.items():
        if size > 0:
            continue
        file = names.get(split, names["train"])
        rows = _format_counts(sizes.items())
        lost = _format_counts(dropped.items())
        remedy = _remedy_for_empty(split, sizes, task)
        raise EmptySplitError(f"{where}: {split} is empty; rows: {rows}; dropped: {lost}; of {file}{remedy}")


def _check_train(task: Task, train: pd.DataFrame, where: str) -> None:
    """Check that the task can learn from train.

    Raises:
        UserError: if it cannot.
    """
    problem = task.preprocessor.find_train_problem(train)
    if problem:
        raise UserError(f"{where}: train has {problem}")


def _remedy_for_empty(split: Split, sizes: Mapping[Split, int], task: Task) -> str:
    """Return what to do about an empty split, if it is due to how train is cut; empty otherwise."""
    entry = task.entry
    is_cut = split in entry.split
    remedy = "name a file for it"
    if split == "train":
        is_cut = any(sizes.get(other) for other in entry.split)
        remedy = "name files for the other splits"
    if not is_cut:
        return ""
    reason = "" if task.preprocessor.strata else "no text has a hash in its share: "
    stratify = "set stratify, or " if entry.may_stratify else ""
    return f"; {reason}{stratify}{remedy}"


def _format_counts(counts: Iterable[tuple[str, int]]) -> str:
    parts = list[str]()
    for name, count in counts:
        part = f"{name} {count}"
        parts.append(part)
    return ", ".join(parts)
