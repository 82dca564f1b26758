"""A data set row becomes three tables: train, validation and test.

What keeps the scores honest is decided here. A split that the source provides is used as it is. A split that is cut
from train is cut by a hash of the text: whether a sentence is in it depends on that sentence alone, not on a seed, the
order of the source or other rows. No sentence of train stands a second time in train, nor in another split.
"""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from pipeline import params
from pipeline.data import labels, sources
from pipeline.data.texts import checked_text, is_missing
from pipeline.errors import UserError
from pipeline.params.rows import DatasetRow, Number

SPLITS = ("train", "validation", "test")
DROPPED = ("missing", "within_margin", "duplicate")


class Loaded(NamedTuple):
    """The tables by split, and how many rows are not in them, for each of the reasons DROPPED."""

    splits: dict[str, pd.DataFrame]
    dropped: dict[str, int]


def load(row: DatasetRow, name: str) -> Loaded:
    """Return train, validation and test with the columns text, text_pair (for a pair) and label; and the dropped rows.

    A class is an int, a number a float. `name` is the row's name, for messages.

    Raises:
        UserError: if the source cannot be read, if a text or label is not what the row says, or if a split is empty or
            a class has no row in train.
    """
    where = f"{params.TABLES['data'][0]}: {name}"
    dropped = Counter(dict.fromkeys(DROPPED, 0))
    splits: dict[str, pd.DataFrame] = {}
    for split, columns in sources.read(row, where).items():
        splits[split] = _usable(columns, row, f"{where}: {split}", dropped)
    train = _distinct(splits, dropped)
    shares = {split: share for split, share in row.cut.items() if split == "test" or row.select_on == "validation"}
    splits |= _cut(train, shares)
    if row.select_on == "test":
        splits["validation"] = splits["test"]
    splits = {split: splits[split].reset_index(drop=True) for split in SPLITS}
    _check_filled(splits, row, where, dropped)
    return Loaded(splits, dict(dropped))


def _usable(columns: sources.Columns, row: DatasetRow, where: str, dropped: Counter[str]) -> pd.DataFrame:
    """The rows that have all texts and a label to keep, in their order.

    Raises:
        UserError: for a text or label that is neither missing nor allowed; the message has the number of the row.
    """
    names = ("text", "text_pair")[: len(row.text)]
    reader = labels.reader(row.label)
    kept: dict[str, list[Any]] = {name: [] for name in (*names, "label")}
    for number, (value, *texts) in enumerate(
        zip(columns[row.label.column], *(columns[column] for column in row.text), strict=True), start=1
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
    return pd.DataFrame({**kept, "label": pd.Series(kept["label"], dtype=float if row.is_regression else int)})


def _distinct(splits: Mapping[str, pd.DataFrame], dropped: Counter[str]) -> pd.DataFrame:
    """Train without the texts that are in it twice or in another split, in the order of `position`, a new column."""
    folded = {split: _folded(table) for split, table in splits.items()}
    train = splits["train"].assign(folded=folded.pop("train"))
    taken = {text for texts in folded.values() for text in texts}
    fresh = train[~train["folded"].isin(taken) & ~train["folded"].duplicated()]
    dropped["duplicate"] = len(train) - len(fresh)
    return (
        fresh.assign(position=[_position(text) for text in fresh["folded"]])
        .drop(columns="folded")
        .sort_values("position")
    )


def _folded(table: pd.DataFrame) -> list[str]:
    """Per row, its texts as they are compared: the same for a reader who ignores case, spacing and typography."""
    texts = [table[column] for column in ("text", "text_pair") if column in table]
    return ["\n".join(fold(text) for text in row) for row in zip(*texts, strict=True)]


def fold(text: str) -> str:
    """Return the text after Unicode NFKC, case folding and white-space folding: equal for texts that are the same."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def _position(folded: str) -> float:
    """A number in [0, 1), evenly spread over texts; 52 bits of the hash, so that no rounding reaches 1."""
    return int(hashlib.sha256(folded.encode()).hexdigest()[:13], 16) / 16**13


def _cut(train: pd.DataFrame, shares: Mapping[Any, float]) -> dict[str, pd.DataFrame]:
    """The cut splits and the rest, train: [0, test), [test, test + validation) and what is above, of `position`."""
    position, texts = train["position"], train.drop(columns="position")
    test, validation = shares.get("test", 0.0), shares.get("validation", 0.0)
    parts = {
        "test": texts[position < test],
        "validation": texts[(position >= test) & (position < test + validation)],
        "train": texts[position >= test + validation],
    }
    return {split: part for split, part in parts.items() if split in shares or split == "train"}


def _check_filled(splits: Mapping[str, pd.DataFrame], row: DatasetRow, where: str, dropped: Mapping[str, int]) -> None:
    sizes = ", ".join(f"{split} {len(table)}" for split, table in splits.items())
    for split, table in splits.items():
        if table.empty:
            reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.items())
            raise UserError(f"{where}: {split} is empty; rows: {sizes}; dropped: {reasons}")
    if isinstance(row.label, Number):
        return
    counts = splits["train"]["label"].value_counts().reindex(range(row.num_labels), fill_value=0)
    if (counts == 0).any():
        shown = ", ".join(f"{name} {count}" for name, count in zip(row.label.names, counts, strict=True))
        raise UserError(f"{where}: train has no row of a class; rows a class: {shown}")
