"""Load a data set row as three tables: train, validation and test.

This module keeps the scores honest. A split that the source provides is used unchanged. A split that is cut from train
is cut by a hash of the text: whether a sentence is in it depends only on that sentence, not on a seed, the order of the
source or other rows. No sentence of train occurs twice in train, or in another split. Pairs of rated sentences are
formed last, within each split.
"""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline import tasks
from pipeline.core.errors import UserError
from pipeline.data import sources
from pipeline.params.dataset_row import DatasetRow
from pipeline.params.sources import Split
from pipeline.tasks import Task
from pipeline.tasks.examples import Examples

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
DROPPED = ("missing", "within_margin", "duplicate")


class Loaded(NamedTuple):
    """The tables by split, and the number of dropped rows for each of the reasons in DROPPED.

    For a row with `pairs`, `within_margin` counts pairs.
    """

    splits: dict[str, "Dataset"]
    dropped: dict[str, int]
    conflicting: int  # dropped duplicates whose label differs from the label of the row that is kept


def load(row: DatasetRow, name: str) -> Loaded:
    """Return train, validation and test with the columns text, text_pair (for a pair) and label; and the dropped rows.

    A class is an int, a number a float. `name` is the row's name, for messages.

    Raises:
        UserError: if the source cannot be read, a text or label does not fit the row, a split is empty, or a class has
            no row in train.
    """
    where, task = f"{row.where}: {name}", tasks.of(row)
    examples = {split: read(task, split, where) for split in SPLITS if split in row.source.provides}
    dropped = Counter(dict.fromkeys(DROPPED, 0))
    for part in examples.values():
        dropped.update(part.dropped)
    train, positions, conflicting = _distinct(examples)
    dropped["duplicate"] = len(examples["train"].labels) - len(train)
    if row.stratify:
        positions = _within(positions, examples["train"].labels[train])
    chosen: dict[Split, np.ndarray] = {split: np.arange(len(part.labels)) for split, part in examples.items()}
    chosen |= _cut(train, positions, row)
    tables = {}
    for split in (split for split in SPLITS if split in chosen):
        tables[split] = task.chosen(examples.get(split, examples["train"]), chosen[split], split)
        dropped.update(tables[split].dropped)
    _check_filled(task, {split: made.labels for split, made in tables.items()}, where, dropped)
    from datasets import Dataset  # takes a second to import: after all checks that do not need it

    splits = {split: Dataset(made.table).select(made.rows) for split, made in tables.items()}
    # Only a row with select_on: test has no validation split; the checkpoint is then chosen on test.
    return Loaded({split: splits.get(split, splits["test"]) for split in SPLITS}, dict(dropped), conflicting)


def read(task: Task, split: Split, where: str) -> Examples:
    """Return the examples of a split that the source provides; errors begin with `where`.

    Raises:
        UserError: if the source cannot be read, or for a text or label that is neither missing nor allowed; names the
            file and the line or row.
    """
    source = task.row.source
    where = f"{where}: {split}: {sources.name_of(source, split)}"
    with sources.explained(where):
        return task.examples(sources.read(source, split, task.reads, where))


def _distinct(examples: Mapping[Split, Examples]) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the rows of train without duplicates of other rows, their positions, and the number of conflicts.

    A row is dropped if its texts occur earlier in train or in another split. The rows are ordered by the hash of their
    texts. Positions are numbers in [0, 1), uniform over the units that are cut together, texts or groups: 52 bits of
    the hash, so that rounding never reaches 1. Conflicts are dropped rows whose label differs from the kept row's.
    """
    parts = [*(part for split, part in examples.items() if split != "train"), examples["train"]]
    digests = np.concatenate([part.digests for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    held_out = len(labels) - len(examples["train"].labels)
    # Of equal texts the first one stays: of other splits, then of train in its order.
    _, first, group = np.unique(digests, axis=0, return_index=True, return_inverse=True)
    conflicting = int((labels != labels[first[group]])[held_out:].sum())
    rows = first[first >= held_out] - held_out
    return rows, (examples["train"].keys[rows] >> 12) / 2.0**52, conflicting


def _within(positions: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return positions evenly spaced over the rows of each class, in order, so that shares of a class are exact."""
    order = np.lexsort((positions, classes))
    sizes = np.bincount(classes)
    firsts = np.cumsum(sizes) - sizes
    spread = np.empty(len(order))
    of = classes[order]
    spread[order] = (np.arange(len(order)) - firsts[of] + 0.5) / sizes[of]
    return spread


def _cut(train: np.ndarray, positions: np.ndarray, row: DatasetRow) -> dict[Split, np.ndarray]:
    """Cut splits by position: [0, test) is test, [test, test + validation) is validation, and the rest is train."""
    test = row.cut.get("test", 0.0)
    validation = row.cut.get("validation", 0.0) if row.select_on == "validation" else 0.0
    parts: dict[Split, np.ndarray] = {"train": train[positions >= test + validation]}
    if test:
        parts["test"] = train[positions < test]
    if validation:
        parts["validation"] = train[(positions >= test) & (positions < test + validation)]
    return parts


def _check_filled(task: Task, labels: Mapping[Split, np.ndarray], where: str, dropped: Mapping[str, int]) -> None:
    source, sizes = task.row.source, ", ".join(f"{split} {len(values)}" for split, values in labels.items())
    for split, values in labels.items():
        if not len(values):
            reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.items())
            file = sources.name_of(source, split if split in source.provides else "train")
            raise UserError(f"{where}: {split} is empty; rows: {sizes}; dropped: {reasons}; of {file}")
    if lacks := task.lacks(labels["train"]):
        raise UserError(f"{where}: train has {lacks}")
