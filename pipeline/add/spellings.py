"""Find labels that are written in several ways, and words that stand for a missing label."""

from collections import Counter
from collections.abc import Iterable, Mapping

import pandas as pd

from pipeline.tasks.cells import is_missing, plain_text, spelling_of
from pipeline.tasks.classes import some_of

MISSING = {"n/a", "#n/a", "na", "<na>", "nan", "null"}  # in lower case; "none" often is a class


def counts_of(column: pd.Series) -> Counter[str]:
    """Return how many cells have each spelling, without space around; empty cells, lists, and flags have none."""
    counts = Counter[str]()
    for value in column:
        if _is_name(value):
            counts[spelling_of(value)] += 1
    return counts


def _is_name(value: object) -> bool:
    is_flag = isinstance(value, bool)
    return isinstance(value, str | int | float) and not is_flag and not is_missing(value)


def missing_words(counts: Iterable[str]) -> dict[str, None]:
    """Return the spellings that stand for a missing label, each with None, which it is to be read as."""
    return {spelling: None for spelling in counts if spelling.casefold() in MISSING}


def one_spelling(counts: Mapping[str, int]) -> dict[str, str]:
    """Return spellings that differ from a more frequent one in case, inner space, or as 1 and 1.0 do; and that one."""
    groups = dict[str, list[str]]()
    for spelling in sorted(counts):
        groups.setdefault(_folded(spelling), []).append(spelling)
    replaced = dict[str, str]()
    for alike in groups.values():
        if len(alike) == 1:
            continue
        most = max(counts[spelling] for spelling in alike)
        frequent = next(spelling for spelling in alike if counts[spelling] == most)
        label = plain_text(frequent)
        replaced |= {spelling: label for spelling in alike if spelling != label}
    return replaced


def notes_of(column: pd.Series, replaced: Mapping[str, str | None]) -> dict[str, str]:
    """Return in words, by a word for each kind, what is read in another way than it is written."""
    counts = counts_of(column)
    missing = list[str]()
    merged = list[str]()
    for spelling, label in replaced.items():
        rows = _counted(counts[spelling], "row")
        if label is None:
            missing.append(f"{spelling} ({rows})")
        else:
            merged.append(f"{spelling} as {label} ({rows})")
    spaced = sum(map(_has_space_around, column))
    notes = dict[str, str]()
    if merged:
        notes["merged"] = f"{some_of(merged)}; --keep-labels leaves them as they are"
    if missing:
        notes["missing"] = f"{some_of(missing)}, taken for no label; --keep-labels makes classes of them"
    if spaced:
        notes["spaces"] = f"around {_counted(spaced, 'label')} are left out"
    return notes


def _has_space_around(value: object) -> bool:
    return isinstance(value, str) and value != value.strip() and not is_missing(value)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def respelled(column: pd.Series, replaced: Mapping[str, str | None]) -> pd.Series:
    """Return a column as it is read when some spellings are replaced."""
    values = [replaced.get(spelling_of(value), value) for value in column]
    return pd.Series(values, column.index, dtype=object, name=column.name)


def _folded(spelling: str) -> str:
    return " ".join(plain_text(spelling).casefold().split())
