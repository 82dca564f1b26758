"""Texts of a file, each through the adapter that its row names: a bank of adapters of one base model."""

import argparse
from collections.abc import Mapping, Sequence
from logging import ERROR, getLogger
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from pipeline import console
from pipeline.data import sources
from pipeline.data.texts import encode
from pipeline.errors import UserError, nearest
from pipeline.methods.task import FILE, Task
from pipeline.params import mistakes
from pipeline.predict import inputs

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from lsr.serve.bank import AdapterBank


def check(options: argparse.Namespace) -> None:
    """Check that the options of a bank go together.

    Raises:
        UserError: if not.
    """
    if (options.bank is None) != (options.adapter_column is None):
        raise UserError("--bank and --adapter-column go together: the column names the adapter of each row")
    if options.bank is not None and options.file is None:
        raise UserError("--bank: needs --file, with a column that names the adapter of each row")
    if options.bank is not None and options.labels is not None:
        raise UserError(f"--labels: each adapter of a bank names its own, in its {FILE}")


def records(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return for each row its text, its adapter, and the label with its probability, or the number; six digits.

    Raises:
        UserError: for the first thing that is wrong.
    """
    from lsr.convert.files import InputError
    from lsr.serve import opening

    try:
        notes = opening.notes_of(options.bank)
        names = _names(options, notes)
        tasks = {name: _task(options, name, notes[name]) for name in dict.fromkeys(names)}
        first = next(iter(tasks.values()))
        given = inputs.of_file(options.file, options.column, first)
        with console.errors.status("loading the model"):
            bank, tokenizer = _open(options)
    except InputError as error:
        raise UserError(str(error)) from None
    length = _max_length(options, tasks, tokenizer.model_max_length)
    encoded, whole = encode(given.texts, given.pairs, tokenizer, length)
    if cut := sum(tokens > length for tokens in whole):
        console.errors.print(f"{cut} of {len(whole)} texts cut at {length} tokens", soft_wrap=True)
    found = _logits(bank, tokenizer, encoded, names, options.batch_size)
    rows: list[dict[str, Any]] = []
    for position, (text, name) in enumerate(zip(given.texts, names, strict=True)):
        pair = {} if given.pairs is None else {"text_pair": given.pairs[position]}
        rows.append({"text": text, **pair, "adapter": name, **_said(found[position], tasks[name].labels)})
    return rows


def _names(options: argparse.Namespace, notes: Mapping[str, object]) -> list[str]:
    where = f"--file: {options.file}"
    table = sources.read_file(options.file, "--file")
    column = sources.select(table, [options.adapter_column], where)[options.adapter_column]
    names = [str(value) for value in column]
    for number, name in enumerate(names, start=1):
        if name not in notes:
            raise UserError(
                f"{where}: row {number}: no adapter {name!r} in {options.bank}, which holds {len(notes)}"
                f"{nearest(name, list(notes))}"
            )
    if not names:
        raise UserError(f"{where}: empty; needed: at least one row")
    return names


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
    from lsr.convert.base_model import tokenizer_of
    from lsr.serve import opening
    from pipeline.methods import device
    from pipeline.methods.base_models import installed_folder

    getLogger("huggingface_hub").setLevel(ERROR)  # that it tries again, when there is no connection
    fields = opening.fields_of(options.bank)
    base = options.base or installed_folder(str(fields.get("base_model_name_or_path")))
    bank, tokenizer = opening.open_bank(options.bank, base), tokenizer_of(fields, options.bank, base)
    if tokenizer is None:
        raise UserError(f"{options.bank}: no tokenizer beside the bank or its base model; see --base")
    return device.place(bank), tokenizer


def _max_length(options: argparse.Namespace, tasks: Mapping[str, Task], limit: int) -> int:
    widths = {len(task.columns) for task in tasks.values()}
    if len(widths) > 1:
        raise UserError(f"{options.bank}: some adapters read one text and others pairs; ask them one after the other")
    if options.max_length is not None and options.max_length > limit:
        raise UserError(f"--max-length: the model takes at most {limit} tokens, got {options.max_length}")
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
) -> "Tensor":  # (texts, labels)
    import torch
    from transformers import DataCollatorWithPadding

    from pipeline.methods.device import device_of

    collate, where = DataCollatorWithPadding(tokenizer), device_of(bank)
    order = torch.tensor([len(ids) for ids in encoded["input_ids"]]).argsort(descending=True, stable=True)
    found = []
    with console.progress("predict", len(names), "texts", console.errors) as advance, torch.inference_mode():
        for indices in order.split(batch_size):
            rows = [{name: values[row] for name, values in encoded.items()} for row in indices.tolist()]
            batch = {name: value.to(where) for name, value in collate(rows).items()}
            chosen = [names[row] for row in indices.tolist()]
            found.append(bank(**batch, adapter_names=chosen).logits.float().cpu())
            advance(len(indices))
    return torch.cat(found)[order.argsort()]


def _said(logits: "Tensor", labels: Sequence[str] | None) -> dict[str, Any]:  # (labels,)
    if labels is None:
        return {"number": _rounded(float(logits[0]))}
    if len(labels) != len(logits):
        raise UserError(f"{FILE}: names {len(labels)} labels, and the head has {len(logits)}")
    shares = logits.double().softmax(dim=0).tolist()
    return {"label": labels[shares.index(max(shares))], "probability": _rounded(max(shares))}


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
