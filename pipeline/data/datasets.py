"""A data set row becomes three tables: train, validation and test.

What keeps the scores honest is decided here. A split that the source provides is used as it is. A split that is cut
from train is cut by a hash of the text: whether a sentence is in it depends on that sentence alone, not on a seed, the
order of the source or other rows. No sentence of train stands a second time in train, nor in another split. Pairs of
rated sentences are made last, inside each split.

Texts go to a file that is mapped into memory; what stays there of a row is a hash of its texts, its label and a number.
"""

import hashlib
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline import artifacts, console, params
from pipeline.data import labels, pairs, sources
from pipeline.data.texts import checked_text, is_missing
from pipeline.errors import UserError
from pipeline.params.rows import DatasetRow, Number

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "validation", "test")
DROPPED = ("missing", "within_margin", "duplicate")


class Loaded(NamedTuple):
    """The tables by split, and how many rows are not in them, for each of the reasons DROPPED.

    Of a row with `pairs`, `within_margin` counts pairs.
    """

    splits: dict[str, "Dataset"]
    dropped: dict[str, int]
    conflicting: int  # duplicates whose label is not that of the row which stays


class _Usable(NamedTuple):
    """The rows of a split that have all texts and a label to keep: the texts are in the file, in their order."""

    path: Path
    digests: np.ndarray  # (rows, 2) of uint64: the first half of the SHA-256 of the folded texts
    labels: np.ndarray  # (rows,)


def load(row: DatasetRow, name: str) -> Loaded:
    """Return train, validation and test with the columns text, text_pair (for a pair) and label; and the dropped rows.

    A class is an int, a number a float. `name` is the row's name, for messages.

    Raises:
        UserError: if the source cannot be read, if a text or label is not what the row says, or if a split is empty or
            a class has no row in train.
    """
    where = f"{params.TABLES['data'][0]}: {name}"
    dropped = Counter(dict.fromkeys(DROPPED, 0))
    with tempfile.TemporaryDirectory(prefix="lsr-adapt-") as folder, artifacts.told_by_path(Path(folder)):
        usable: dict[str, _Usable] = {
            split: _usable(table, row, f"{where}: {split}", dropped, Path(folder, split))
            for split, table in sources.read(row, where).items()
        }
        train, positions, conflicting = _distinct(usable)
        dropped["duplicate"] = len(usable["train"].labels) - len(train)
        chosen: dict[str, np.ndarray] = {split: np.arange(len(found.labels)) for split, found in usable.items()}
        shares = {split: share for split, share in row.cut.items() if split == "test" or row.select_on == "validation"}
        chosen |= _cut(train, positions, shares)
        chosen = {split: chosen[split] for split in SPLITS if split in chosen}
        tables = {split: usable.get(split, usable["train"]) for split in chosen}
        paired = None if row.pairs is None else _paired(tables, chosen, row.pairs.margin, dropped)
        if paired is None:
            found = {split: tables[split].labels[rows] for split, rows in chosen.items()}
        else:
            found = {split: made.labels for split, made in paired.items()}
        _check_filled(found, row, where, dropped)
        mapped = _mapped({split: part.path for split, part in usable.items()})
        splits = {split: mapped.get(split, mapped["train"]).select(rows) for split, rows in chosen.items()}
        if paired is not None:
            splits = _written(paired, splits, Path(folder))
    # Only a row with select_on: test has no validation split; its choice is made on test.
    return Loaded({split: splits.get(split, splits["test"]) for split in SPLITS}, dict(dropped), conflicting)


def _usable(table: sources.Table, row: DatasetRow, where: str, dropped: Counter[str], path: Path) -> _Usable:
    """Write the rows that have all texts and a label to keep.

    Raises:
        UserError: for a text or label that is neither missing nor allowed; the message has the number of the row.
    """
    names = ("text", "text_pair")[: len(row.text)]
    kind = pa.float64() if isinstance(row.label, Number) else pa.int64()
    schema = pa.schema({**dict.fromkeys(names, pa.string()), "label": kind})
    digests, found = [np.empty((0, 2), np.uint64)], [np.empty(0, kind.to_pandas_dtype())]
    number = behind = 0
    with (
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_stream(file, schema) as writer,
        console.progress(f"read {where.rpartition(' ')[2]}", table.total, table.unit) as advance,
    ):
        for done, columns in table.batches:
            kept = _kept(columns, row, names, where, number, dropped)
            number += len(columns[row.label.column])
            digests.append(_digests([kept[name] for name in names]))
            found.append(np.array(kept["label"], kind.to_pandas_dtype()))
            writer.write_batch(pa.RecordBatch.from_pydict(kept, schema=schema))
            if done > behind:
                advance(done - behind)
                behind = done
    return _Usable(path, np.concatenate(digests), np.concatenate(found))


def _kept(
    columns: sources.Columns, row: DatasetRow, names: tuple[str, ...], where: str, begin: int, dropped: Counter[str]
) -> dict[str, list[Any]]:
    """The rows of a batch that have all texts and a label to keep; `begin` rows came before.

    Raises:
        UserError: for a text or label that is neither missing nor allowed; the message has the number of the row.
    """
    reader = labels.reader(row.label)
    kept: dict[str, list[Any]] = {name: [] for name in (*names, "label")}
    for number, (value, *texts) in enumerate(
        zip(columns[row.label.column], *(columns[column] for column in row.text), strict=True), start=begin + 1
    ):
        try:
            if is_missing(value) or any(is_missing(text) for text in texts):
                dropped["missing"] += 1
                continue
            label = reader(value)
            checked = [checked_text(text) for text in texts]
        except ValueError as error:
            raise UserError(f"{where}: row {number}: {error}") from None
        if label is None:
            dropped["within_margin"] += 1
            continue
        for key, kept_value in zip(kept, (*checked, label), strict=True):
            kept[key].append(kept_value)
    return kept


def _digests(texts: list[list[str]]) -> np.ndarray:
    """Per row, half of the SHA-256 of its texts as they are compared, as two numbers."""
    folded = ("\n".join(fold(text) for text in row) for row in zip(*texts, strict=True))
    content = b"".join(hashlib.sha256(text.encode()).digest()[:16] for text in folded)
    return np.frombuffer(content, ">u8").reshape(-1, 2).astype(np.uint64)


def fold(text: str) -> str:
    """Return the text after Unicode NFKC, case folding and white-space folding: equal for texts that are the same."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def _distinct(usable: Mapping[str, _Usable]) -> tuple[np.ndarray, np.ndarray, int]:
    """The rows of train without those whose texts stand before in train or in another split, and what follows them.

    They are in the order of their positions, which are numbers in [0, 1), evenly spread over texts: 52 bits of the
    hash, so that no rounding reaches 1. Last is how many left rows have another label than the one that stays.
    """
    parts = [*(found for split, found in usable.items() if split != "train"), usable["train"]]
    digests = np.concatenate([part.digests for part in parts])
    found = np.concatenate([part.labels for part in parts])
    held_out = len(found) - len(usable["train"].labels)
    order = np.lexsort(digests.T[::-1])  # stable: of equal texts, other splits come first, then train in its order
    digests, found = digests[order], found[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (digests[1:] != digests[:-1]).any(axis=1)
    is_train = order >= held_out
    stays = found[is_first][np.cumsum(is_first) - 1]  # of each row, the label of the first one with its texts
    conflicting = int((is_train & (found != stays)).sum())
    fresh = is_first & is_train
    return order[fresh] - held_out, (digests[fresh, 0] >> 12) / 2.0**52, conflicting


def _cut(train: np.ndarray, position: np.ndarray, shares: Mapping[Any, float]) -> dict[str, np.ndarray]:
    """The cut splits and the rest, train: [0, test), [test, test + validation) and what is above, of `position`."""
    test, validation = shares.get("test", 0.0), shares.get("validation", 0.0)
    parts = {
        "test": train[position < test],
        "validation": train[(position >= test) & (position < test + validation)],
        "train": train[position >= test + validation],
    }
    return {split: part for split, part in parts.items() if split in shares or split == "train"}


def _mapped(paths: Mapping[str, Path]) -> dict[str, "Dataset"]:
    """Each file, once, however many splits are cut from it; its name can go."""
    from datasets import Dataset  # a second of import: after all that can be refused without it

    return {split: Dataset.from_file(str(path)) for split, path in paths.items()}


def _paired(
    tables: Mapping[str, _Usable], chosen: Mapping[str, np.ndarray], margin: float, dropped: Counter[str]
) -> dict[str, pairs.Paired]:
    """The pairs of each split. Those of test are disjoint: the intervals of its scores need independent examples."""
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
    return _mapped(paths)


def _check_filled(
    found: Mapping[str, np.ndarray],  # the labels of each split
    row: DatasetRow,
    where: str,
    dropped: Mapping[str, int],
) -> None:
    sizes = ", ".join(f"{split} {len(values)}" for split, values in found.items())
    for split, values in found.items():
        if not len(values):
            reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.items())
            raise UserError(f"{where}: {split} is empty; rows: {sizes}; dropped: {reasons}")
    if row.is_regression:
        return
    counts = np.bincount(found["train"], minlength=row.num_labels)
    if not counts.all():
        shown = ", ".join(f"{name} {count}" for name, count in zip(row.names, counts, strict=True))
        raise UserError(f"{where}: train has no row of a class; rows a class: {shown}")
