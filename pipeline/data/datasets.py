"""Load a data set row as three tables: train, validation and test.

This module keeps the scores honest. A split that the source provides is used unchanged. A split that is cut from train
is cut by a hash of the text: whether a sentence is in it depends only on that sentence, not on a seed, the order of the
source or other rows. No sentence of train occurs twice in train, or in another split. Pairs of rated sentences are
formed last, within each split.
"""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import pyarrow as pa

from pipeline import tasks
from pipeline.core.errors import UserError
from pipeline.data import sources
from pipeline.params.dataset_row import DatasetRow
from pipeline.params.sources import Split
from pipeline.tasks import Task
from pipeline.tasks.task import GROUP, TENANT

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Loaded(NamedTuple):
    """The tables by split, and what was dropped to make them."""

    splits: dict[str, "Dataset"]
    dropped: dict[str, int]  # rows that are missing, within_margin (for a row with `pairs`, pairs) and duplicate
    conflicting: int  # dropped duplicates whose label differs from the label of the row that is kept


def load(row: DatasetRow, name: str) -> Loaded:
    """Return train, validation and test with the columns text, text_pair (for a pair) and label; and the dropped rows.

    A class is an int, a number a float. A source that cannot be read, a text or label that does not fit the row, an
    empty split, and what train lacks are refused with the row's name, the split, its file and the line or row.
    """
    where, task = f"{row.where}: {name}", tasks.of(row)
    examples: dict[Split, pd.DataFrame] = {}
    dropped = Counter(missing=0, within_margin=0, duplicate=0)
    for split in (split for split in SPLITS if split in row.source.provides):
        file = f"{where}: {split}: {sources.name_of(row.source, split)}"
        with sources.explained(file):
            examples[split], left_out = task.examples(sources.read(row.source, split, task.reads, file))
        dropped.update(left_out)
    train, conflicting = _distinct(examples)
    dropped["duplicate"] = len(examples["train"]) - len(train)
    examples |= _cut(train, task)
    if row.tenant:  # a text that several tenants have: no other may train on what one of them is scored on
        held_out = pd.concat([part["position"] for split, part in examples.items() if split != "train"])
        examples["train"] = (train := examples["train"])[~train["position"].isin(held_out)]
        dropped["duplicate"] += len(train) - len(examples["train"])
    examples = {split: examples[split] for split in SPLITS if split in examples}
    for split, part in examples.items():
        examples[split], left_out = task.after_cut(part, split)
        dropped.update(left_out)
    _check_filled(task, examples, where, dropped)
    from datasets import Dataset  # takes a second to import: after all checks that do not need it

    splits = {split: Dataset(_table(part)) for split, part in examples.items()}
    # Only a row with select_on: test has no validation split; the checkpoint is then chosen on test.
    return Loaded({split: splits.get(split, splits["test"]) for split in SPLITS}, dict(dropped), conflicting)


def _distinct(examples: Mapping[Split, pd.DataFrame]) -> tuple[pd.DataFrame, int]:
    """Return the rows of train without duplicates of other rows, ordered by their hashes, and the number of conflicts.

    A row is dropped if its texts occur earlier in train or in another split. Conflicts are dropped rows whose label
    differs from the kept row's.
    """
    train = examples["train"]
    whole = pd.concat([*(part for split, part in examples.items() if split != "train"), train], ignore_index=True)
    held_out = len(whole) - len(train)
    # Of equal texts the first one stays: of other splits, then of train in its order.
    again = whole.duplicated("hash").to_numpy()[held_out:]
    differs = whole["label"] != whole.groupby("hash")["label"].transform("first")
    return train[~again].sort_values("hash"), int(differs[held_out:].sum())


def _cut(train: pd.DataFrame, task: Task) -> dict[Split, pd.DataFrame]:
    """Cut splits by position: [0, test) is test, [test, test + validation) is validation, and the rest is train."""
    row, position = task.row, train["position"]
    if task.strata:  # evenly spaced over the rows of each class, in order, so that shares of a class are exact
        of_class = position.groupby([train[name] for name in task.strata])
        offsets = pd.Series([task.offset(key, len(its)) for key, its in of_class]).iloc[of_class.ngroup()].to_numpy()
        position = (of_class.rank(method="first") - 1 + offsets) / of_class.transform("size")
    test = row.cut.get("test", 0.0)
    validation = row.cut.get("validation", 0.0) if row.select_on == "validation" else 0.0
    parts: dict[Split, pd.DataFrame] = {"train": train[position >= test + validation]}
    if test:
        parts["test"] = train[position < test]
    if validation:
        parts["validation"] = train[(position >= test) & (position < test + validation)]
    return parts


def _check_filled(task: Task, examples: Mapping[Split, pd.DataFrame], where: str, dropped: Mapping[str, int]) -> None:
    source, sizes = task.row.source, ", ".join(f"{split} {len(part)}" for split, part in examples.items())
    for split, part in examples.items():
        if part.empty:
            reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.items())
            file = sources.name_of(source, split if split in source.provides else "train")
            raise UserError(f"{where}: {split} is empty; rows: {sizes}; dropped: {reasons}; of {file}")
    if lacks := task.lacks(examples["train"]):
        raise UserError(f"{where}: train has {lacks}")


def _table(examples: pd.DataFrame) -> pa.Table:
    names = [name for name in ("text", "text_pair", "label", GROUP, TENANT) if name in examples]
    texts = {name: pa.string() for name in names if name.startswith("text")}  # by default pandas has large ones
    return pa.table({name: pa.array(examples[name], texts.get(name)) for name in names})
