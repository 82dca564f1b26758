"""Infer from a table the text columns, the label column, and the rest of a data set entry."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from shlex import quote
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pipeline.add import column_types, lists, odd_cells, spellings
from pipeline.core.errors import UserError
from pipeline.data import sources
from pipeline.params.sources import TableSource
from pipeline.tasks.cells import plain_text
from pipeline.tasks.classes import RARE_SHARE, RARE_TEXTS

USUAL = ("label", "labels", "tags", "topics", "class", "target", "category", "sentiment", "stars", "rating", "score")
CUT = {"validation": 0.1, "test": 0.2}
# Rows per value from which values of several words are classes rather than texts:
MIN_ROWS = 10
MIN_ROWS_IF_USUAL = 2  # in a column with a usual name
WITH_COMMA = re.compile(r"-?\d+(,\d+)?")
# The columns of a language model's data:
PROMPT = "prompt"
COMPLETION = "completion"
MESSAGES = "messages"
UNFIT = {bytes: "bytes", dict: "objects"}  # cells that are no labels, by type


class Choice(NamedTuple):
    """The user's choices: columns (the others are inferred), and whether labels stay unchanged."""

    text: Sequence[str] = ()
    label: str | None = None
    tenant: str | None = None
    keeps_labels: bool = False


class Description(NamedTuple):
    """The contents of a data set entry, and notes about values that it reads differently from the file."""

    content: dict[str, Any]
    notes: dict[str, str]


def infer_entry(
    table: pd.DataFrame,
    source: TableSource,
    choice: Choice,
    where: str,
) -> Description:
    """Infer a data set entry from a table read from a source; chosen columns override the guess.

    Raises:
        UserError: if a chosen column is missing, there is no header line, the columns to read or to predict are
            ambiguous, the column to predict has neither classes nor numbers, or an option has no effect.
    """
    _check_columns(table, choice, where)
    keys = source.model_dump(mode="json", exclude_defaults=True)
    content: dict[str, Any] = {"source": keys}
    fractions = {split: share for split, share in CUT.items() if split not in source.files}
    table = table.drop(columns=choice.tenant or [])
    written = _infer_completion(table, choice)
    if written:
        _check_completion(choice)
        content |= written
        content["split"] = fractions
        return Description(content, {})
    label = choice.label or _label(table, choice.text, where)
    column = table[label]
    replaced = {} if choice.keeps_labels else _find_respellings(column)
    if replaced:
        keys["replace"] = {label: replaced}
    read = spellings.respell(column, replaced)
    scored = _infer_target(read, choice.tenant, where)
    if not fractions:
        scored.pop("stratify", None)  # nothing is cut
    content["text"] = list(choice.text) or _texts(table, label, where)
    _check_named([label, *content["text"]], where)
    if choice.tenant is not None:
        content["tenant"] = choice.tenant
    content |= scored
    content["split"] = fractions
    notes = spellings.notes_of(column, replaced)
    if "multi_label" in scored["label"]:
        _check_multi_label(choice)
        notes |= spellings.notes_of_names(scored["label"]["names"])
    elif _have_commas(scored["label"].get("names", ())):
        notes["numbers"] = "with a comma are taken for classes; to predict a number, write them with a point"
    return Description(content, notes)


def _check_columns(table: pd.DataFrame, choice: Choice, where: str) -> None:
    """Check that a table has rows with a header and the chosen columns, rather than a list of rows in one cell.

    Raises:
        UserError: if not.
    """
    for name, values in table.items():
        if len(table) == 1 and _is_list_of_objects(values.iloc[0]):
            needed = f"write an entry whose source has `each: {name}`"
            raise UserError(f"{where}: the rows are in the list {name}; {needed}")
    if _is_row(table):
        raise UserError(f"{where}: no header line found; add one, such as text,label")
    label = choice.label
    tenant = choice.tenant
    chosen = list(choice.text)
    if label:
        chosen.append(label)
    if tenant:
        chosen.append(tenant)
    sources.check_columns(table.columns, chosen, where)
    if tenant is not None and tenant == label:
        raise UserError(f"{where}: --tenant and --label name the same column, {tenant}; they must be two")


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _is_row(table: pd.DataFrame) -> bool:
    """Return whether the names of columns are a row: one is a text, and another is a number or recurs in its column.

    A question of a survey is a text as well, but is the name of a column.
    """
    has_text = any(column_types.is_text(pd.Series([name])) for name in table)
    if not has_text:
        return False
    for name, values in table.items():
        as_cell = pd.Series([name])
        if column_types.as_numbers(as_cell) is not None or values.eq(name).any():
            return True
    return False


def _check_named(columns: Sequence[str], where: str) -> None:
    """Check that columns have names: Excel may write `sep=;`, and exports a title, above the line with the names.

    Raises:
        UserError: if one has none.
    """
    if "" in columns:
        needed = "a first line with the names of columns, such as text,label"
        raise UserError(f"{where}: a column to read has no name; needed: {needed}")


def _texts(table: pd.DataFrame, label: str, where: str) -> list[str]:
    """Return the columns other than the label that are texts.

    Raises:
        UserError: if there are not one or two.
    """
    others = table.drop(columns=label)
    texts = list[str]()
    for column, values in others.items():
        if column_types.is_text(values):
            texts.append(str(column))
    if not texts and len(others.columns) == 1:
        texts = list(others)  # short texts, or numbers, of which there is no choice
    if len(texts) in (1, 2):
        return texts
    if others.empty:
        raise UserError(f"{where}: no column of texts next to the label {label}; needed: one or two")
    columns = " ".join(map(quote, texts or others))
    raise UserError(f"{where}: which one or two columns are the text? --text {columns}")


def _infer_completion(table: pd.DataFrame, choice: Choice) -> dict[str, Any]:
    """Infer text, label and metrics of a table with conversations or completions; empty for other tables."""
    metrics = ["exact_match", "rouge_l"]
    text = list(choice.text)
    may_be_messages = choice.label in (None, MESSAGES) and not text
    if may_be_messages and MESSAGES in table:
        label = {"messages": MESSAGES}
        return {"label": label, "metrics": metrics}
    may_be_completion = choice.label in (None, COMPLETION)
    if not text and PROMPT in table:
        text = [PROMPT]
    if may_be_completion and COMPLETION in table and text:
        label = {"completion": COMPLETION}
        return {"text": text, "label": label, "metrics": metrics}
    return {}


def _check_completion(choice: Choice) -> None:
    """Check that no option is given that has no effect on completions.

    Raises:
        UserError: if one is.
    """
    reason = "has no effect on completions; name another column with --label"
    if choice.tenant is not None:
        raise UserError(f"--tenant: {reason}")
    if choice.keeps_labels:
        raise UserError(f"--keep-labels: {reason}")


def _check_multi_label(choice: Choice) -> None:
    """Check that --keep-labels is not given, as the labels of a multi-label column stay unchanged anyway.

    Raises:
        UserError: if it is.
    """
    if choice.keeps_labels:
        raise UserError("--keep-labels: has no effect on a multi-label column, whose labels are kept")


def _label(table: pd.DataFrame, text: Sequence[str], where: str) -> str:
    """Return the column to predict: the one with a usual name, or the only one with few values or with lists of names.

    Raises:
        UserError: if there is none, or several have few values, numbers or lists.
    """
    columns, few, numbers, of_lists, of_words = _find_candidates(table, text)
    named = {column.casefold(): column for column in reversed(columns)}  # the first of equal names
    for usual in USUAL:
        if usual in named:
            return named[usual]
    possible = few or of_words or [*numbers, *of_lists]
    if len(possible) == 1 and possible != numbers:
        return possible[0]
    if possible:
        shown = " or ".join(map(quote, possible))
        raise UserError(f"{where}: which column is to be predicted? --label {shown}")
    shown = ", ".join(table)
    reason = _describe_columns(table[columns]) or f"each has text, or another value in nearly every row: {shown}"
    needed = "needed: one with a few classes, or with numbers"
    raise UserError(f"{where}: no column could be a label; {reason}; {needed}")


class Candidates(NamedTuple):
    """Columns that could be the label."""

    columns: list[str]  # all columns without running text, or with classes of several words
    few: list[str]  # with few values
    numbers: list[str]
    of_lists: list[str]  # with lists of names
    of_words: list[str]  # with few values, of several words each


def _find_candidates(table: pd.DataFrame, text: Sequence[str]) -> Candidates:
    candidates = Candidates([], [], [], [], [])
    most = min(column_types.MAX_CLASSES, len(table) / 5)
    for column in table:
        values = table[column]
        if column in text:
            continue
        if column_types.is_running_text(values):
            if may_be_classes(values):
                candidates.columns.append(column)
                candidates.of_words.append(column)
            continue
        candidates.columns.append(column)
        as_text = values.map(str)
        different = as_text.nunique()
        if column_types.detect_joined_labels(values) or 1 < different <= most:
            candidates.few.append(column)
        elif column_types.may_be_scale(spellings.drop_missing_words(values)):
            candidates.numbers.append(column)
        elif lists.are_lists_of_names(values):
            candidates.of_lists.append(column)
    return candidates


def may_be_classes(column: pd.Series) -> bool:
    """Return whether values of several words may be classes: few, in a column with a usual name or many rows each."""
    is_usual = str(column.name).casefold() in USUAL
    least = MIN_ROWS_IF_USUAL if is_usual else MIN_ROWS
    most = min(column_types.MAX_CLASSES, len(column) / least)
    return 1 < column.map(str).nunique() <= most


def _describe_columns(table: pd.DataFrame) -> str:
    """Describe the first column that has numbers in all but a few cells; empty if there is none."""
    for name, column in table.items():
        odd = odd_cells.describe_odd_cell(column)
        if odd:
            return f"{name} {odd}"
    return ""


def _find_respellings(column: pd.Series) -> dict[str, str | None]:
    """Return the replacements for spellings of labels, in a column with one label per cell."""
    if column_types.detect_joined_labels(column):
        return {}
    counts = spellings.counts_of(column)
    missing = spellings.missing_words(counts)
    others = dict[str, int]()
    for spelling, count in counts.items():
        if spelling not in missing:
            others[spelling] = count
    without = spellings.respell(column, missing)
    if column_types.numbers_to_predict(without) is not None:
        return {**missing}
    merged = spellings.one_spelling(others)
    return {**merged, **missing}


def _infer_target(column: pd.Series, tenant: str | None, where: str) -> dict[str, Any]:
    """Infer label, metrics and strata of an entry from the column to predict.

    The classes of tenants are determined later.

    Raises:
        UserError: if it has neither classes nor numbers.
    """
    name = column.name
    _check_cells(column, where)
    scale = column_types.numbers_to_predict(column)
    if scale is not None:
        low = float(scale.min())
        high = float(scale.max())
        label = {"column": name, "low": low, "high": high}
        return {"label": label, "metrics": ["pearson", "spearman"]}
    parts = column_types.detect_joined_labels(column) or lists.name_labels(column, where)
    if parts:
        label = {"multi_label": name, **parts}
        return {"label": label, "metrics": ["macro_f1", "micro_f1"]}
    if tenant is not None:
        label = {"column": name}
        return {"label": label, "metrics": ["accuracy", "macro_f1"]}
    values = column_types.drop_missing(column)
    counts = Counter(map(plain_text, values))
    _check_classes(column, counts, where)
    if all(isinstance(value, bool) for value in values):
        booleans = {"false": counts["0"], "true": counts["1"]}
        return _of_classes(name, booleans)
    spelled = pd.Series(list(counts))
    are_numbers = column_types.as_numbers(spelled) is not None
    names = sorted(counts, key=float if are_numbers else None)
    in_order = {label: counts[label] for label in names}
    return _of_classes(name, in_order)


def _check_cells(column: pd.Series, where: str) -> None:
    """Check that a column to predict holds no bytes and objects, also in lists, whose code would become class names.

    Raises:
        UserError: if it does.
    """
    for value in column:
        items = value if isinstance(value, list | np.ndarray) else [value]
        kinds = [UNFIT[kind] for kind in map(type, items) if kind in UNFIT]
        if kinds:
            needed = "a column of texts, numbers or lists of names"
            raise UserError(f"{where}: {column.name} holds {kinds[0]}; needed: {needed}")


def _check_classes(column: pd.Series, counts: Counter[str], where: str) -> None:
    """Check that a column, with so many rows of each value, has classes.

    Raises:
        UserError: if it has too few or too many values.
    """
    rows = counts.total()
    most = min(column_types.MAX_CLASSES, rows / 2)
    if 1 < len(counts) <= most:
        return
    odd = odd_cells.describe_odd_cell(column)
    values = "1 value" if len(counts) == 1 else f"{len(counts):,} different values"
    has = odd or f"has {values} in {rows:,} rows"
    numbers = "numbers, with a point, not a comma," if _have_commas(counts) else "numbers,"
    needed = f"needed are {numbers} or 2 to {column_types.MAX_CLASSES} values with several rows each"
    raise UserError(f"{where}: {column.name} is not a label: it {has}; {needed}; choose another --label")


def _have_commas(values: Collection[str]) -> bool:
    """Return whether all values are numbers, some of them with a decimal comma."""
    has_comma = any("," in value for value in values)
    return has_comma and all(map(WITH_COMMA.fullmatch, values))


def _of_classes(column: Any, counts: Mapping[str, int]) -> dict[str, Any]:
    # The keys of an entry that follow from its classes, given the number of texts of each.
    names = list(counts)
    label = {"column": column, "names": names}
    f1 = list[str]()
    if len(names) == 2:
        first, second = names
        is_first_rarer = counts[first] < counts[second]
        label["positive"] = first if is_first_rarer else second
        f1 = ["f1"]
    least = min(counts.values())
    total = sum(counts.values())
    enough = RARE_SHARE * total
    metrics = ["accuracy", *(f1 or ["macro_f1"])]
    if least < max(RARE_TEXTS, enough):  # accuracy hardly changes if a rare class is never answered
        metrics = ["macro_f1", *f1, "accuracy"]
    scored: dict[str, Any] = {"label": label, "metrics": metrics}
    if least < RARE_TEXTS:
        scored["stratify"] = True
    return scored
