"""Load a data set row as three tables: train, validation and test.

This module keeps the scores honest. A split that the source provides is used unchanged. A split that is cut from train
is cut by a hash of the text: whether a sentence is in it depends only on that sentence, not on a seed, the order of the
source or other rows. No sentence of train occurs twice in train, or in another split. Pairs of rated sentences are
formed last, within each split.

"""

import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline import params
from pipeline.core import artifacts
from pipeline.core.errors import UserError
from pipeline.data import pairs, sources
from pipeline.data.usable import Usable, write
from pipeline.params.rows import DatasetRow
from pipeline.params.sources import Split

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
    where = f"{params.TABLES['data'][0]}: {name}"
    dropped = Counter(dict.fromkeys(DROPPED, 0))
    with tempfile.TemporaryDirectory(prefix="lsr-adapt-") as folder, artifacts.name_path_on_error(Path(folder)):
        read = sources.read(row, where, SPLITS)
        found_in: dict[str, str] = {split: table.name for split, table in read.items()}
        usable: dict[str, Usable] = {
            split: write(table, row, split, where, dropped, Path(folder, split), hidden=False)
            for split, table in read.items()
        }
        train, positions, conflicting = _distinct(usable)
        dropped["duplicate"] = len(usable["train"].labels) - len(train)
        chosen: dict[str, np.ndarray] = {split: np.arange(len(found.labels)) for split, found in usable.items()}
        shares = {split: share for split, share in row.cut.items() if split == "test" or row.select_on == "validation"}
        if row.stratify:
            positions = _within(positions, usable["train"].labels[train])
        chosen |= _cut(train, positions, shares)
        chosen = {split: chosen[split] for split in SPLITS if split in chosen}
        tables = {split: usable.get(split, usable["train"]) for split in chosen}
        paired = None if row.pairs is None else _paired(tables, chosen, row.pairs.margin, dropped)
        if paired is None:
            found = {split: tables[split].labels[rows] for split, rows in chosen.items()}
        else:
            found = {split: made.labels for split, made in paired.items()}
        _check_filled(found, row, where, dropped, found_in)
        tables_of = mapped({split: part.path for split, part in usable.items()})
        splits = {split: tables_of.get(split, tables_of["train"]).select(rows) for split, rows in chosen.items()}
        if paired is not None:
            splits = _written(paired, splits, Path(folder))
    # Only a row with select_on: test has no validation split; the checkpoint is then chosen on test.
    return Loaded({split: splits.get(split, splits["test"]) for split in SPLITS}, dict(dropped), conflicting)


def _distinct(usable: Mapping[str, Usable]) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the rows of train without duplicates of other rows, their positions, and the number of conflicts.

    A row is dropped if its texts occur earlier in train or in another split. The rows are ordered by the hash of their
    texts. Positions are numbers in [0, 1), uniform over the units that are cut together, texts or groups: 52 bits of
    the hash, so that rounding never reaches 1. Conflicts are dropped rows whose label differs from the kept row's.
    """
    parts = [*(found for split, found in usable.items() if split != "train"), usable["train"]]
    digests = np.concatenate([part.digests for part in parts])
    found = np.concatenate([part.labels for part in parts])
    held_out = len(found) - len(usable["train"].labels)
    order = np.lexsort(digests.T[::-1])  # stable: among equal texts, other splits come first, then train in its order
    digests, found = digests[order], found[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (digests[1:] != digests[:-1]).any(axis=1)
    is_train = order >= held_out
    stays = found[is_first][np.cumsum(is_first) - 1]  # for each row, the label of the first one with its texts
    conflicting = int((is_train & (found != stays)).sum())
    fresh = is_first & is_train
    rows = order[fresh] - held_out
    return rows, (usable["train"].keys[rows] >> 12) / 2.0**52, conflicting


def _within(positions: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return positions evenly spaced over the rows of each class, in order, so that shares of a class are exact."""
    order = np.lexsort((positions, classes))
    sizes = np.bincount(classes)
    firsts = np.cumsum(sizes) - sizes
    spread = np.empty(len(order))
    of = classes[order]
    spread[order] = (np.arange(len(order)) - firsts[of] + 0.5) / sizes[of]
    return spread


def _cut(train: np.ndarray, position: np.ndarray, shares: Mapping[Any, float]) -> dict[str, np.ndarray]:
    """Cut splits by `position`: [0, test) is test, [test, test + validation) is validation, and the rest is train."""
    test, validation = shares.get("test", 0.0), shares.get("validation", 0.0)
    parts = {
        "test": train[position < test],
        "validation": train[(position >= test) & (position < test + validation)],
        "train": train[position >= test + validation],
    }
    return {split: part for split, part in parts.items() if split in shares or split == "train"}


def mapped(paths: Mapping[str, Path]) -> dict[str, "Dataset"]:
    """Return the table in each file, memory-mapped; the file may then be unlinked."""
    from datasets import Dataset  # takes a second to import: after all checks that do not need it

    return {split: Dataset.from_file(str(path)) for split, path in paths.items()}


def _paired(
    tables: Mapping[str, Usable], chosen: Mapping[str, np.ndarray], margin: float, dropped: Counter[str]
) -> dict[str, pairs.Paired]:
    """Return the pairs of each split. In test they are disjoint, because its intervals need independent examples."""
    paired = {
        split: pairs.pair(tables[split].digests[rows], tables[split].labels[rows], margin, disjoint=split == "test")
        for split, rows in chosen.items()
    }
    for made in paired.values():
        dropped["within_margin"] += made.within_margin
        dropped["duplicate"] += made.duplicate
    return paired


def _written(paired: Mapping[str, pairs.Paired], splits: Mapping[str, "Dataset"], folder: Path) -> dict[str, "Dataset"]:
    paths = {split: folder / f"{split}-pairs" for split in paired}
    for split, made in paired.items():
        pairs.write(made, splits[split], paths[split])
    return mapped(paths)


def _check_filled(
    found: Mapping[str, np.ndarray],  # the labels of each split
    row: DatasetRow,
    where: str,
    dropped: Mapping[str, int],
    names: Mapping[str, str],  # of the files from which the splits are read
) -> None:
    sizes = ", ".join(f"{split} {len(values)}" for split, values in found.items())
    for split, values in found.items():
        if not len(values):
            reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.items())
            file = names.get(split, names["train"])
            raise UserError(f"{where}: {split} is empty; rows: {sizes}; dropped: {reasons}; of {file}")
    if row.is_regression:
        return
    counts = np.bincount(found["train"], minlength=row.num_labels)
    if not counts.all():
        shown = ", ".join(f"{name} {count}" for name, count in zip(row.names, counts, strict=True))
        raise UserError(f"{where}: train has no row of a class; rows per class: {shown}; of {names['train']}")
