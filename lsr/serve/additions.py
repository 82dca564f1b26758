"""Add tenants to a bank with `lsr bank`: without labels, or with a few labeled texts in a CSV file."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lsr.errors import InputError, wrap_errors
from lsr.loading.base_models import load_tokenizer
from lsr.serve.bank import AdapterBank
from lsr.serve.fitting import Example, Fit, fit_tenant
from lsr.serve.groups import Labels, labels_of, make_member
from lsr.serve.passes import BatchRunner

LABEL = "label"  # the column of labels
TEXT = "text"  # the column of texts, if the bank does not name its columns or the file has others
MAX_EXAMPLES = 10_000  # maximum number of examples per file
MAX_CHARACTERS = 100_000  # maximum number of characters per cell
LENGTH = 512  # maximum tokens of a text, unless the tokenizer or the adapter has a lower limit


def split_labels(text: str) -> tuple[str, ...]:
    """Parse labels separated by commas; a label with a comma is in double quotes, as in CSV.

    Raises:
        InputError: if one is empty.
    """
    [labels] = csv.reader([text], skipinitialspace=True)
    if not labels or not all(label.strip() for label in labels):
        raise InputError(f"--labels: needed: names, separated by commas, got {text!r}")
    return tuple(labels)


def add_unlabeled(bank: AdapterBank, names: Sequence[str], labels: Labels) -> None:
    """Add tenants by name and labels only; their heads are the mean of the tenants with the same labels.

    Raises:
        InputError: if a name is taken, or no tenant of the bank has these labels.
    """
    bank.add_all({name: make_member(bank, name, labels) for name in names})


def add_fitted(
    bank: AdapterBank,
    files: Mapping[str, Path],
    folder: Path,
    base: str | None,
    labels: Labels,
) -> Iterator[str]:
    """Add or replace tenants with labeled texts, and yield a line about each; `folder` is the bank's.

    Raises:
        InputError: if a file cannot be read, or its labels do not fit the bank.
    """
    tokenizer = load_tokenizer(bank.base_fields, folder, base)
    if tokenizer is None:
        raise InputError(f"{folder}: its base model has no tokenizer, which --fit needs")
    passes = BatchRunner(bank, tokenizer, min(tokenizer.model_max_length, LENGTH), 1, is_strict=True)
    if passes.max_new_tokens:
        raise InputError(f"{folder}: --fit: its adapters generate text; only classes are fitted")
    for name, path in files.items():
        own = labels or (labels_of(bank, name) if name in bank.names else None)
        examples = read_examples(path, _columns_of(bank))
        with wrap_errors(path, InputError):
            fit = fit_tenant(passes, name, examples, own)
        bank.add(name, fit.contents, replace=True)
        yield _describe(name, fit, len(examples))


def _columns_of(bank: AdapterBank) -> Sequence[str]:
    """Return the text columns on which a bank's tenants were trained."""
    first: Mapping[str, Any] = next(iter(bank.task_infos.values()), {})
    return first.get("columns") or (TEXT,)


def read_examples(path: Path, columns: Sequence[str]) -> list[Example]:
    """Return the labeled texts of a CSV file in UTF-8 with a header: `columns`, or `text`, and `label`.

    Raises:
        InputError: if it cannot be read; names the file, and the line or the columns.
    """
    examples = list[Example]()
    csv.field_size_limit(MAX_CHARACTERS)
    with wrap_errors(path, OSError, UnicodeDecodeError, csv.Error), path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        header = list(reader.fieldnames or ())
        texts = _text_columns(header, columns, path)
        for cells in reader:
            where = f"{path}: line {reader.line_num}"
            if None in cells or None in cells.values():
                raise InputError(f"{where}: needed: {len(header)} cells, as in the header")
            if len(examples) == MAX_EXAMPLES:
                raise InputError(f"{path}: more than {MAX_EXAMPLES:,} texts; for so many, train an adapter")
            parts = [cells[column] for column in texts]
            label = cells[LABEL].strip()
            if not label or not all(part.strip() for part in parts):
                raise InputError(f"{where}: has no text or no label")
            examples.append(Example(parts[0] if len(parts) == 1 else parts, label))
    return examples


def _text_columns(header: Sequence[str], columns: Sequence[str], path: Path) -> Sequence[str]:
    """Return the columns of the texts in a file.

    Raises:
        InputError: if a text column or the labels are missing.
    """
    texts = columns
    if len(columns) == 1 and columns[0] not in header:
        texts = (TEXT,)
    for column in (*texts, LABEL):
        if column not in header:
            present = ", ".join(header) or "none"
            raise InputError(f"{path}: no column {column!r}; needed: {', '.join((*texts, LABEL))}; columns: {present}")
    return texts


def _describe(name: str, fit: Fit, count: int) -> str:
    """Describe a fit in one line: its cross-validated accuracy, compared with the group's rows."""
    chosen = fit.chosen
    low, high = chosen.interval
    fitted = f"{100 * chosen.accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
    of_group = f"{100 * fit.group_accuracy:.1f} %"
    answers = "the fit answers" if chosen.is_better else "not better, so the rows of its group answer"
    return f"{name}: {count} texts, accuracy by cross-validation {fitted}, of its group {of_group}: {answers}"
