"""Run a model with one adapter, or a bank where each row names its own, over texts, and turn logits into columns."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers import DataCollatorWithPadding

from pipeline.core import console
from pipeline.core.errors import UserError, nearest
from pipeline.data.encoding import encode
from pipeline.methods import adapter_task
from pipeline.methods.adapter_task import FILE, Task
from pipeline.methods.device import device_of
from pipeline.predict import opening
from pipeline.predict.opening import Opened
from pipeline.predict.output import Columns, rounded
from pipeline.predict.texts import Given

NO_LIMIT = 10**6  # tokens; a tokenizer without a limit reports 1e30


def of_one(options: argparse.Namespace, given: Given, task: Task | None) -> Columns:
    """Return the label and the probability of each class, or the number, to six digits.

    Raises:
        UserError: if the adapter cannot be opened, or its labels or the length of its texts are unknown.
    """
    opened = opening.open_adapter(options.adapter, options.base)
    labels = _labels(options, opened, task)
    limit = opened.tokenizer.model_max_length if task is None else task.max_length
    found = _logits(options, opened, given, None, limit)
    if labels is None:
        return {"number": [rounded(value) for value in found[:, 0].tolist()]}
    shares = found.double().softmax(dim=1)
    by_label = {f"p({label})": list(map(rounded, shares[:, at].tolist())) for at, label in enumerate(labels)}
    return {"label": [labels[at] for at in shares.argmax(dim=1).tolist()], **by_label}


def _labels(options: argparse.Namespace, opened: Opened, task: Task | None) -> Sequence[str] | None:
    """Return the label names in the order of the model's outputs; None for a regression.

    Raises:
        UserError: if the number of names differs from the number of outputs.
    """
    config: Any = opened.base.config
    named, where = (None if task is None else task.labels), str(options.adapter / FILE)
    if options.labels is not None:
        named, where = options.labels, "--labels"
    if named is None and config.num_labels == 1:
        return None
    if named is None and task is None:
        console.errors.print(f"{options.adapter}: no {FILE}, which names the labels; see --labels", soft_wrap=True)
        return [config.id2label[position] for position in range(config.num_labels)]
    if named is None or len(named) != config.num_labels or len(set(named)) != len(named):
        needed = f"{config.num_labels} different names are needed, one per output of the head"
        raise UserError(f"{where}: labels: {needed}, got {'none' if named is None else ' '.join(named)}")
    return named


def tasks_of(options: argparse.Namespace, names: "pd.Series[str]") -> dict[str, Task]:
    """Return the tasks of the adapters that rows of a file name, from a bank or a folder of adapters.

    Raises:
        UserError: if an adapter is missing or says nothing of its task, or some read single texts and others pairs.
    """
    notes, tasks = opening.notes(options.bank), dict[str, Task]()
    for row, name in enumerate(names.astype(str), start=1):
        if name not in notes:
            there = f"{options.bank}, which holds {len(notes)}{nearest(name, notes)}"
            raise UserError(f"--file: {options.file}: row {row}: no adapter {name!r} in {there}")
        if notes[name] is None:
            raise UserError(f"{options.bank}: adapter {name}: no {FILE}, which names the columns and labels")
        if name not in tasks:
            tasks[name] = adapter_task.parsed(notes[name], options.bank / name / FILE)
    if len({len(task.columns) for task in tasks.values()}) > 1:
        raise UserError(f"{options.bank}: some adapters read single texts and others pairs; run them separately")
    return tasks


def of_bank(options: argparse.Namespace, given: Given, tasks: Mapping[str, Task]) -> Columns:
    """Return the label of each row's adapter with its probability, or the number, to six digits.

    Raises:
        UserError: if the bank cannot be opened, or the adapters differ in the length of their texts.
    """
    lengths = sorted({task.max_length for task in tasks.values()})
    if options.max_length is None and len(lengths) > 1:
        raise UserError(f"--max-length: needed: the adapters were trained with {', '.join(map(str, lengths))} tokens")
    names = given.table[options.adapter_column].astype(str).tolist()
    found = _logits(options, opening.open_adapters(options.bank, options.base), given, names, lengths[0])
    rows: list[dict[str, object]] = []
    for name, logits in zip(names, found, strict=True):
        labels = tasks[name].labels
        if labels is None:
            rows.append({"number": rounded(float(logits[0]))})
        elif len(labels) != len(logits):
            raise UserError(
                f"{options.bank}: adapter {name}: {FILE} names {len(labels)} labels, got {len(logits)} outputs"
            )
        else:
            share, at = logits.double().softmax(dim=0).max(dim=0)
            rows.append({"label": labels[int(at)], "probability": rounded(float(share))})
    columns = dict.fromkeys(key for row in rows for key in row)
    return {key: [row.get(key) for row in rows] for key in columns}


@torch.inference_mode()
def _logits(
    options: argparse.Namespace, opened: Opened, given: Given, names: Sequence[str] | None, limit: int
) -> Tensor:  # (texts, labels)
    """Return the model's outputs; texts of similar length share a batch, whose rows a bank passes through `names`.

    Raises:
        UserError: if there is no limit to the length of a text, or it does not fit the model.
    """
    length = options.max_length or limit
    if length > NO_LIMIT:
        raise UserError("--max-length: needed: neither the adapter nor its tokenizer limits the length of a text")
    opening.check_length(length, opened, pairs=given.pairs is not None)
    encoded, whole = encode(given.texts, given.pairs, opened.tokenizer, length)
    collate, where = DataCollatorWithPadding(opened.tokenizer), device_of(opened.model)
    order = torch.tensor(list(map(len, encoded["input_ids"]))).argsort(descending=True, stable=True)
    found = []
    with console.progress("predict", len(order), "texts", console.errors) as advance:
        for indices in order.split(options.batch_size):
            rows = indices.tolist()
            batch = collate([{name: values[row] for name, values in encoded.items()} for row in rows])
            chosen = {} if names is None else {"adapter_names": [names[row] for row in rows]}
            on_device = {name: value.to(where) for name, value in batch.items()}
            found.append(opened.model(**on_device, **chosen).logits.float().cpu())
            advance(len(rows))
    if cut := sum(tokens > length for tokens in whole):
        console.errors.print(f"{cut} of {len(whole)} texts truncated to {length} tokens", soft_wrap=True)
    return torch.cat(found)[order.argsort()]
