"""Predict the texts of a file, each with the adapter that its row names, from a bank for one base model."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from logging import ERROR, getLogger
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError

from pipeline.core import console
from pipeline.core.errors import UserError, nearest
from pipeline.data import sources
from pipeline.data.encoding import encode
from pipeline.methods.adapter_task import FILE, Task
from pipeline.params import mistakes
from pipeline.predict import inputs
from pipeline.predict.inputs import Given, Source
from pipeline.predict.output import Answer, Record, free, rounded, rows_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lsr.serve.bank import AdapterBank


def check(options: argparse.Namespace) -> None:
    """Check that the options of a bank are compatible.

    Raises:
        UserError: if they are not.
    """
    if (options.bank is None) != (options.adapter_column is None):
        raise UserError("--bank and --adapter-column go together: the column names the adapter of each row")
    if options.bank is not None and options.file is None:
        raise UserError("--bank: needs --file, with a column that names the adapter of each row")
    if options.bank is not None and options.labels is not None:
        raise UserError(f"--labels: each adapter of a bank names its own, in its {FILE}")


def of_bank(options: argparse.Namespace) -> tuple[Source, int, Answer]:
    """Return the texts, the maximum length in tokens, and a function that predicts a batch with its adapters.

    A prediction is the label with its probability, or a number, to six digits.

    Raises:
        UserError: for the first error.
    """
    from lsr.loading.files import InputError
    from lsr.serve import opening

    try:
        notes = opening.notes_of(options.bank)
        tasks = {name: _task(options, name, notes[name]) for name in _names(options, notes)}
        first = next(iter(tasks.values()))
        source = inputs.of_file(options.file, options.column, first, skip_empty=options.skip_empty)
        with console.errors.status("loading the model"):
            bank, tokenizer = _open(options)
    except InputError as error:
        raise UserError(str(error)) from None
    from pipeline.predict.opening import check_length  # seconds

    length = _max_length(options, tasks)
    check_length(length, tokenizer, cast("PreTrainedModel", bank.model), pairs=source.reads_pairs)

    def answer(given: Given, advance: Callable[[int], None]) -> tuple[list[Record], int]:
        names = [str(value) for value in given.columns[options.adapter_column]]
        encoded, whole = encode(given.texts, given.pairs, tokenizer, length)
        found = _logits(bank, tokenizer, encoded, names, options.batch_size, advance)
        rows = rows_of(given)
        for row, name, logits in zip(rows, names, found, strict=True):
            row |= _said(logits, tasks[name].labels, given.columns)
        return rows, sum(tokens > length for tokens in whole)

    return source, length, answer


def _names(options: argparse.Namespace, notes: Mapping[str, object]) -> list[str]:
    """Return the distinct adapters that a file names.

    Raises:
        UserError: if the file cannot be read or has no rows, or the bank lacks an adapter; names its first row.
    """
    where, column = f"--file: {options.file}", options.adapter_column
    columns: dict[str, None] = {}
    first: dict[str, int] = {}  # the first row of each adapter
    before = 0
    for batch in sources.batches_of(options.file, "--file"):
        columns |= dict.fromkeys(batch)
        height = max(map(len, batch.values()), default=0)
        for number, value in enumerate(batch.get(column, [None] * height), start=before + 1):
            first.setdefault(str(value), number)
        before += height
    sources.check_columns(columns, [column], where)
    for name, number in first.items():
        if name not in notes:
            raise UserError(
                f"{where}: row {number}: no adapter {name!r} in {options.bank}, which holds {len(notes)}"
                f"{nearest(name, list(notes))}"
            )
    if not first:
        raise UserError(f"{where}: empty; needed: at least one row")
    return list(first)


def _task(options: argparse.Namespace, name: str, note: Any) -> Task:
    where = f"{options.bank}: adapter {name}"
    if note is None:
        raise UserError(f"{where}: no {FILE}, which names the columns and labels")
    try:
        task = Task.model_validate(note)
    except ValidationError as error:
        raise UserError("\n".join(mistakes.lines(error, Task, note, options.bank / name / FILE, ()))) from None
    return task


def _open(options: argparse.Namespace) -> tuple["AdapterBank", "PreTrainedTokenizerBase"]:
    from lsr.loading.base_models import load_tokenizer
    from lsr.serve import opening
    from pipeline.data.pretrained import pad
    from pipeline.methods import device
    from pipeline.predict.opening import base_in_repository

    getLogger("huggingface_hub").setLevel(ERROR)  # hides its retries when offline
    fields = opening.fields_of(options.bank)
    base = options.base or base_in_repository(fields)
    bank, tokenizer = opening.open_bank(options.bank, base), load_tokenizer(fields, options.bank, base)
    if tokenizer is None:
        raise UserError(f"{options.bank}: no tokenizer beside the bank or its base model; see --base")
    pad(tokenizer, str(options.bank), cast("PreTrainedModel", bank.model))
    return device.place(bank), tokenizer


def _max_length(options: argparse.Namespace, tasks: Mapping[str, Task]) -> int:
    widths = {len(task.columns) for task in tasks.values()}
    if len(widths) > 1:
        raise UserError(f"{options.bank}: some adapters read single texts and others pairs; run them separately")
    lengths = sorted({task.max_length for task in tasks.values()})
    if options.max_length is None and len(lengths) > 1:
        raise UserError(f"--max-length: needed: the adapters were trained with {', '.join(map(str, lengths))} tokens")
    return int(options.max_length or lengths[0])


def _logits(
    bank: "AdapterBank",
    tokenizer: "PreTrainedTokenizerBase",
    encoded: Mapping[str, Sequence[Sequence[int]]],
    names: Sequence[str],
    batch_size: int,
    advance: Callable[[int], None],
) -> "Tensor":  # (texts, labels)
    import torch
    from transformers import DataCollatorWithPadding

    from pipeline.methods.device import device_of

    collate, where = DataCollatorWithPadding(tokenizer), device_of(bank)
    order = torch.tensor([len(ids) for ids in encoded["input_ids"]]).argsort(descending=True, stable=True)
    found = []
    with torch.inference_mode():
        for indices in order.split(batch_size):
            rows = [{name: values[row] for name, values in encoded.items()} for row in indices.tolist()]
            batch = {name: value.to(where) for name, value in collate(rows).items()}
            chosen = [names[row] for row in indices.tolist()]
            found.append(bank(**batch, adapter_names=chosen).logits.float().cpu())
            advance(len(indices))
    return torch.cat(found)[order.argsort()]


def _said(logits: "Tensor", labels: Sequence[str] | None, taken: sources.Columns) -> Record:  # (labels,)
    if labels is None:
        return {free("number", taken): rounded(float(logits[0]))}
    if len(labels) != len(logits):
        raise UserError(f"{FILE}: names {len(labels)} labels, but the head has {len(logits)}")
    shares = logits.double().softmax(dim=0).tolist()
    best = max(shares)
    return {free("label", taken): labels[shares.index(best)], free("probability", taken): rounded(best)}
