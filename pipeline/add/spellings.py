"""Find labels with several spellings, and words for missing labels."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping

import pandas as pd

from lsr_onnx.errors import some_of
from pipeline.data.sources import replace_value
from pipeline.tasks.cells import is_missing, plain_text, spelling_of

# Lower-case spellings; "none" is not among them, because it often is a class.
MISSING = {"n/a", "#n/a", "na", "<na>", "nan", "null"}


def counts_of(column: pd.Series) -> Counter[str]:
    """Count the cells per spelling, stripped; empty cells, lists and booleans do not count."""
    counts = Counter[str]()
    for value in column:
        if _is_name(value):
            counts[spelling_of(value)] += 1
    return counts


def _is_name(value: object) -> bool:
    if isinstance(value, bool) or is_missing(value):
        return False
    return isinstance(value, str | int | float)


def missing_words(counts: Iterable[str]) -> dict[str, None]:
    """Return the spellings of missing labels, each mapped to None."""
    missing = [spelling for spelling in counts if spelling.casefold() in MISSING]
    return dict.fromkeys(missing)


def drop_missing_words(column: pd.Series) -> pd.Series:
    """Return a column in which cells with a word for a missing label are empty."""
    counts = counts_of(column)
    missing = missing_words(counts)
    return respell(column, missing)


def one_spelling(counts: Mapping[str, int]) -> dict[str, str]:
    """Map spellings to a more frequent one that differs only in case, inner space, Unicode form, or like 1 and 1.0."""
    groups = dict[str, list[str]]()
    for spelling in sorted(counts):
        folded = _fold_spelling(spelling)
        groups.setdefault(folded, []).append(spelling)
    replaced = dict[str, str]()
    for alike in groups.values():
        if len(alike) == 1:
            continue
        frequent = max(alike, key=counts.__getitem__)  # ties go to the first
        label = plain_text(frequent)
        for spelling in alike:
            if spelling != label:
                replaced[spelling] = label
    return replaced


def notes_of(column: pd.Series, replaced: Mapping[str, str | None]) -> dict[str, str]:
    """Return a note each, by key, on merged spellings, missing labels and spaces around labels, if there are any."""
    counts = counts_of(column)
    missing = list[str]()
    merged = list[str]()
    for spelling, label in replaced.items():
        rows = _format_count(counts[spelling], "row")
        if label is None:
            missing.append(f"{spelling} ({rows})")
        else:
            merged.append(f"{spelling} as {label} ({rows})")
    spaced = sum(map(_has_space_around, column))
    notes = dict[str, str]()
    if merged:
        shown = some_of(merged)
        notes["merged"] = f"{shown}; --keep-labels leaves them as they are"
    if missing:
        shown = some_of(missing)
        notes["missing"] = f"{shown}, taken for no label; --keep-labels makes classes of them"
    if spaced:
        labels = _format_count(spaced, "label")
        notes["spaces"] = f"around {labels} are left out"
    return notes


def notes_of_names(names: Iterable[str], kind: str = "labels") -> dict[str, str]:
    """Describe labels of a multi-label column, or tenants, that differ only in case or space; they are not merged."""
    alike = one_spelling(Counter(names))
    if not alike:
        return {}
    shown = some_of([f"{label} and {spelling}" for spelling, label in alike.items()])
    return {"apart": f"{shown} are different {kind}; write them in one way to merge them"}


def _has_space_around(value: object) -> bool:
    if not isinstance(value, str) or is_missing(value):
        return False
    return value != value.strip()


def _format_count(count: int, noun: str) -> str:
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun}s"


def respell(column: pd.Series, replaced: Mapping[str, str | None]) -> pd.Series:
    """Replace spellings in a column."""
    values = [replace_value(value, replaced) for value in column]
    return pd.Series(values, column.index, dtype=object, name=column.name)


def _fold_spelling(spelling: str) -> str:
    composed = unicodedata.normalize("NFC", plain_text(spelling))  # macOS may write an accent as a character of its own
    words = composed.casefold().split()
    return " ".join(words)
