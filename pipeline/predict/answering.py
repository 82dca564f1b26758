"""Run a model with one adapter, or a bank where each row names its own, over texts, and turn logits into columns."""

import argparse
from collections.abc import Mapping, Sequence

import pandas as pd
from datasets import Dataset
from torch import Tensor
from transformers import DataCollatorWithPadding

from lsr.serve.file import read_index
from pipeline.core import console
from pipeline.core.errors import UserError, nearest
from pipeline.data.encoding import encode
from pipeline.evaluation import inference
from pipeline.methods.adapter_task import FILE, Task
from pipeline.params.reading import validated
from pipeline.predict import opening
from pipeline.predict.opening import Opened
from pipeline.predict.output import Columns, rounded
from pipeline.predict.texts import Given


def of_one(options: argparse.Namespace, given: Given, task: Task) -> Columns:
    """Return the label and the probability of each class, or the number, to six digits.

    Raises:
        UserError: if the adapter cannot be opened, or has other labels than its task names.
    """
    model, tokenizer = opening.open_adapter(options.adapter, options.base)
    labels, outputs = task.labels, model.config.num_labels
    if len(labels or ("number",)) != outputs:
        where = options.adapter / FILE
        raise UserError(f"{where}: labels: {outputs} names are needed, one per output of the head")
    found = _logits(options, (model, tokenizer), given, None, task.max_length)
    if labels is None:
        return {"number": [rounded(value) for value in found[:, 0].tolist()]}
    shares = found.double().softmax(dim=1)
    by_label = {f"p({label})": list(map(rounded, shares[:, at].tolist())) for at, label in enumerate(labels)}
    return {"label": [labels[at] for at in shares.argmax(dim=1).tolist()], **by_label}


@opening.in_plain_words()
def tasks_of(options: argparse.Namespace, names: "pd.Series[str]") -> dict[str, Task]:
    """Return the tasks of the adapters that rows of a file name, from a bank.

    Raises:
        UserError: if an adapter is missing or says nothing of its task, or they read texts of different kinds.
    """
    notes, tasks = read_index(options.bank).notes, dict[str, Task]()
    for row, name in enumerate(names.astype(str), start=1):
        if name not in notes:
            there = f"{options.bank}, which holds {len(notes)}{nearest(name, notes)}"
            raise UserError(f"--file: {options.file}: row {row}: no adapter {name!r} in {there}")
        if notes[name] is None:
            raise UserError(f"{options.bank}: adapter {name}: no {FILE}, which names the columns and labels")
        if name not in tasks:
            tasks[name] = validated(Task, notes[name], options.bank / name / FILE, ())
    if len({(len(task.columns), task.max_length) for task in tasks.values()}) > 1:
        raise UserError(
            f"{options.bank}: the adapters differ in max_length, or some read single texts and others pairs; run them "
            "separately"
        )
    return tasks


def of_bank(options: argparse.Namespace, given: Given, tasks: Mapping[str, Task]) -> Columns:
    """Return the label of each row's adapter with its probability, or the number, to six digits.

    Raises:
        UserError: if the bank cannot be opened.
    """
    length = next(iter(tasks.values())).max_length
    names = given.table[options.adapter_column].astype(str).tolist()
    opened = opening.open_adapters(options.bank, options.base)
    found = _logits(options, opened, given, names, length)
    rows: list[dict[str, object]] = []
    for answer in opened[0].answers(found, names):
        if answer.labels is None:
            rows.append({"number": rounded(float(answer.logits[0]))})
        else:
            share, at = answer.logits.double().softmax(dim=0).max(dim=0)
            rows.append({"label": answer.labels[int(at)], "probability": rounded(float(share))})
    columns = dict.fromkeys(key for row in rows for key in row)
    return {key: [row.get(key) for row in rows] for key in columns}


def _logits(
    options: argparse.Namespace, opened: Opened, given: Given, names: Sequence[str] | None, length: int
) -> Tensor:  # (texts, labels)
    """Return the model's outputs; a bank passes each text through the adapter that `names` has for it."""
    model, tokenizer = opened
    encoded, whole = encode(given.texts, given.pairs, tokenizer, length)
    inputs = Dataset.from_dict({**encoded, "length": [len(ids) for ids in encoded["input_ids"]]})
    with console.progress("predict", len(inputs), "texts", console.errors) as advance:
        collate = DataCollatorWithPadding(tokenizer)
        found = inference.logits(model, inputs, collate, options.batch_size, advance, names)
    if cut := sum(tokens > length for tokens in whole):
        console.errors.print(f"{cut} of {len(whole)} texts truncated to {length} tokens", soft_wrap=True)
    return found
