"""Add tenants to a bank with `lsr bank`: without labels, or with a few labeled texts in a CSV file."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lsr.loading.base_models import load_tokenizer
from lsr.serve.bank import AdapterBank
from lsr.serve.fitting import NUMBERS
from lsr.serve.groups import join_group
from lsr.serve.labeled import Fit, fit_tenant
from lsr.serve.passes import BatchRunner
from lsr_onnx.answers import Labels
from lsr_onnx.errors import InputError, wrap_errors
from lsr_onnx.examples import columns_of, read_file

LENGTH = 512  # maximum tokens of a text, unless the tokenizer or the adapter has a lower limit


def add_unlabeled(bank: AdapterBank, names: Sequence[str], labels: Labels) -> str:
    """Add tenants by name and labels only, and return a line about them.

    Their heads have the rows of the tenants with the same labels.

    Raises:
        InputError: if a name is taken, or no tenant of the bank has these labels.
    """
    first = names[0]
    contents, tenants = join_group(bank, first, labels)
    bank.add_all({name: replace(contents, source=name) for name in names})
    return f"{_count(len(names))} added with the rows of their group, of {_count(tenants)}"


def _count(tenants: int) -> str:
    return "1 tenant" if tenants == 1 else f"{tenants:,} tenants"


def add_fitted(
    bank: AdapterBank,
    files: Mapping[str, Path],
    folder: Path,
    base: str | None,
    labels: Labels,
) -> Iterator[str]:
    """Fit tenants to labeled texts, and yield a line about each; `folder` is the bank's.

    Where a fit is not better than the rows of the group, a new tenant gets these. A tenant of the bank stays as it is
    where a fit is not better than those or than its own.

    Raises:
        InputError: if a file cannot be read, or its labels do not fit the bank.
    """
    tokenizer = load_tokenizer(bank.base_fields, folder, base)
    if tokenizer is None:
        raise InputError(f"{folder}: its base model has no tokenizer, which --fit needs")
    passes = BatchRunner(bank, tokenizer, min(tokenizer.model_max_length, LENGTH), 1)
    if passes.max_new_tokens:
        raise InputError(f"{folder}: --fit: its adapters generate text; only classes and numbers are fitted")
    for name, path in files.items():
        examples = read_file(path, columns_of(bank))
        with wrap_errors(path, InputError):
            fit = fit_tenant(passes, name, examples, labels)
        is_new = name not in bank.versions
        if fit.chosen.is_better or is_new:
            bank.add(name, fit.contents, replace=True)
        yield _describe(name, fit, len(examples), is_new=is_new)


def _describe(
    name: str,
    fit: Fit,
    count: int,
    *,
    is_new: bool,
) -> str:
    """Describe a fit in one line: its cross-validated score, compared with rows of the group and of the bank."""
    chosen = fit.chosen
    low, high = (_format(fit, end) for end in chosen.interval)
    unit = "" if fit.metric == NUMBERS.metric else " %"
    fitted = f"{_format(fit, chosen.score)}{unit} ({low} to {high})"
    others = f"of its group {_format(fit, fit.group_score)}{unit}"
    if fit.present_score is not None:
        others += f", of its rows in the bank {_format(fit, fit.present_score)}{unit}"
    if chosen.is_better:
        answers = "the fit answers"
    elif is_new:
        answers = "not better, so the rows of its group answer"
    else:
        answers = "not better, so its rows in the bank stay"
    texts = f"{count} texts"
    if fit.contradictory:
        texts += f", {fit.contradictory} of them with different labels"
    if fit.truncated:
        texts += f", {fit.truncated} truncated"
    return f"{name}: {texts}, {fit.metric} by cross-validation {fitted}, {others}: {answers}"


def _format(fit: Fit, score: float) -> str:
    """Format a score in percent, or an error in the unit of the numbers."""
    return f"{score:.4g}" if fit.metric == NUMBERS.metric else f"{100 * score:.1f}"
