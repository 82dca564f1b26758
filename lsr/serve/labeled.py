"""Fit a tenant's head to a few labeled texts in seconds, without changing the shared adapter.

A fit has three steps: `prepare` checks and tokenizes the examples, `read_batch` reads their features in batches, and
`finish` fits the rows. A server makes each step where it keeps nobody waiting.
"""

import csv
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lsr.loading.contents import Contents
from lsr.serve.bank import AdapterBank
from lsr.serve.features import join_batches, read_batch, split_batches
from lsr.serve.fitting import (
    CLASSES,
    MULTI_LABEL,
    NUMBERS,
    Chosen,
    Form,
    fit_if_better,
    never_stop,
    rows_of,
    score_group,
    with_rows,
)
from lsr.serve.groups import find_groups, find_present, labels_of, make_member
from lsr.serve.modules import Version
from lsr.serve.passes import BatchRunner
from lsr_onnx.answers import Labels
from lsr_onnx.errors import InputError, shortened, wrap_errors
from lsr_onnx.examples import Example, Label, Text
from lsr_onnx.rows import TokenizedText

MIN_TEXTS = 4
LARGEST_NUMBER = 1e30

Array = np.ndarray


class Prepared(NamedTuple):
    """Examples that are ready for a fit."""

    group: Contents  # the tenant with the rows of its group
    present: Contents | None  # its rows in the bank that can be compared with them
    form: Form
    targets: Array
    texts: Array  # numbers of the distinct texts
    rows: list[TokenizedText]
    batches: list[list[int]]  # numbers of the rows that are read together
    contradictory: int  # texts that have several different labels


class Fit(NamedTuple):
    """A tenant's fitted head."""

    contents: Contents  # the fitted head, or the group's own rows where the fit is not better
    chosen: Chosen
    group_score: float  # score of the group's rows on the same texts
    present_score: float | None  # score of the tenant's rows in the bank that can be compared with them
    metric: str
    contradictory: int  # texts that have several different labels
    truncated: int  # texts with more tokens than the tenant reads


def fit_tenant(passes: BatchRunner, name: str, examples: Sequence[Example], labels: Labels = None) -> Fit:
    """Fit a tenant's head to labeled texts; `labels` are all possible labels in order.

    By default the tenant's labels in the bank, otherwise the labels of the examples in alphabetical order, or numbers.
    The bank does not change; `bank.add(name, fit.contents, replace=True)` stores the result.

    Raises:
        InputError: as `prepare`.
    """
    prepared = prepare(passes, name, examples, labels)
    parts = [read_batch(passes, prepared.rows, batch) for batch in prepared.batches]
    return finish(prepared, parts)


def prepare(passes: BatchRunner, name: str, examples: Sequence[Example], labels: Labels = None) -> Prepared:
    """Check and tokenize examples for a fit of a tenant; `labels` are as in `fit_tenant`.

    Raises:
        InputError: if there are too few texts, or of one label; if a label is not among those of the tenant, or no
            tenant has these; if a text is not valid.
    """
    _check_count(examples, len(examples))
    bank = passes.bank
    with bank.shared.one_thread:
        labels = labels or _find_labels(bank, name, examples)
        group = make_member(bank, name, labels)
        present = find_present(bank, name, labels)
    form = _form_of(group)
    targets = _read_targets(examples, labels, form)
    rows = _tokenize(passes, group, [example.text for example in examples])
    texts = number_texts(examples)
    _check_count(examples, len(set(texts)))
    batches = split_batches(rows)
    return Prepared(group, present, form, targets, texts, rows, batches, count_contradictory(examples, texts))


def _tokenize(passes: BatchRunner, group: Contents, texts: Sequence[Text]) -> list[TokenizedText]:
    """Tokenize texts one by one, as the limit of characters is that of a request; longer ones are truncated."""
    version = Version(dict(group.task or {}), {}, 0)
    rows = list[TokenizedText]()
    for number, text in enumerate(texts):
        rows += passes.rows(group.source, version, [text], names=[f"{passes.field}[{number}]"])
    return rows


def finish(
    prepared: Prepared,
    parts: Sequence[Array],
    check_time: Callable[[], None] = never_stop,
) -> Fit:
    """Fit the rows of a head to the features of prepared examples, one part for each batch.

    `check_time` is called now and then, and may raise an error.
    """
    group, present, form, targets, texts, *_ = prepared
    features = join_batches(prepared.batches, parts)
    start = rows_of(group, features.shape[1])
    of_bank = None if present is None else rows_of(present, features.shape[1])
    rows, chosen = fit_if_better(features, targets, start, form, check_time, texts, of_bank)
    contents = with_rows(group, rows) if chosen.is_better else group
    of_group = score_group(features, targets, start, form, texts)
    return Fit(
        contents=contents,
        chosen=chosen,
        group_score=of_group,
        present_score=None if of_bank is None else score_group(features, targets, of_bank, form, texts),
        metric=form.metric,
        contradictory=prepared.contradictory,
        truncated=sum(row.is_truncated for row in prepared.rows),
    )


def number_texts(examples: Sequence[Example]) -> Array:
    """Number the distinct texts from 0 in their order; texts that differ in case or whitespace only are equal."""
    numbers = dict[tuple[str, ...], int]()
    of_examples = list[int]()
    for example in examples:
        parts = [example.text] if isinstance(example.text, str) else example.text
        normal = tuple(" ".join(part.casefold().split()) for part in parts)
        number = numbers.setdefault(normal, len(numbers))
        of_examples.append(number)
    return np.array(of_examples)


def count_contradictory(examples: Sequence[Example], texts: Array) -> int:
    """Return the number of distinct texts that have several different labels."""
    labels_by_text = defaultdict[int, set[Label]](set)
    for example, number in zip(examples, texts, strict=True):
        labels_by_text[number].add(example.label)
    return sum(len(labels) > 1 for labels in labels_by_text.values())


def _check_count(examples: Sequence[Example], texts: int) -> None:
    different = len({example.label for example in examples})
    if texts < MIN_TEXTS or different < 2:
        got = f"got {texts} of {different}"
        raise InputError(f"needed: at least {MIN_TEXTS} different texts, of two different labels; {got}")


def _find_labels(bank: AdapterBank, name: str, examples: Sequence[Example]) -> Labels:
    """Return a tenant's labels: its own in the bank, or else those of the examples; None for numbers."""
    if name in bank.versions:
        return labels_of(bank, name)
    groups = find_groups(bank)
    given = sorted({example.label for example in examples if isinstance(example.label, str)})
    has_numbers = frozenset() in groups
    if given and (frozenset(given) in groups or not has_numbers):
        return tuple(given)
    are_numbers = all(_is_number(example.label) for example in examples)
    return None if are_numbers or not given else tuple(given)


def _form_of(group: Contents) -> Form:
    task = group.task or {}
    if task.get("labels") is None:
        return NUMBERS
    return MULTI_LABEL if task.get("thresholds") else CLASSES


def _read_targets(examples: Sequence[Example], labels: Labels, form: Form) -> Array:
    """Return the targets of examples in a form.

    Raises:
        InputError: if a label is not a number, or not among `labels`.
    """
    if labels is None:
        return np.array([_read_number(example.label) for example in examples])
    places = {label: number for number, label in enumerate(labels)}
    if form is MULTI_LABEL:
        targets = np.zeros((len(examples), len(labels)))
        for row, example in enumerate(examples):
            for label in _split(example.label):
                targets[row, _place_of(label, places)] = 1
        return targets
    return np.array([_place_of(example.label, places) for example in examples])


def _place_of(label: Label, places: dict[str, int]) -> int:
    if isinstance(label, str) and label in places:
        return places[label]
    allowed = shortened(", ".join(places))
    raise InputError(f"label {shortened(label)}: is not one of {allowed}")


def _split(label: Label) -> Sequence[str]:
    if isinstance(label, tuple):
        return label
    return split_labels(str(label), "label") if str(label).strip() else ()


def _is_number(label: Label) -> bool:
    try:
        _read_number(label)
    except InputError:
        return False
    return True


def _read_number(label: Label) -> float:
    try:
        number = math.nan if isinstance(label, tuple) else float(label)
    except (ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= LARGEST_NUMBER:
        raise InputError(f"label {shortened(label)}: needed: a number from {-LARGEST_NUMBER:g} to {LARGEST_NUMBER:g}")
    return number


def split_labels(text: str, where: str) -> tuple[str, ...]:
    """Parse labels separated by commas; a label with a comma is in double quotes, as in CSV.

    Raises:
        InputError: if one is empty; `where` is the field or option in the message.
    """
    with wrap_errors(where, csv.Error):
        lines = list(csv.reader([text], skipinitialspace=True))
    labels = lines[0] if len(lines) == 1 else []
    if not labels or not all(label.strip() for label in labels):
        raise InputError(f"{where}: needed: names, separated by commas, got {shortened(text)}")
    return tuple(labels)
