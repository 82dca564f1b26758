"""The tokens of a task, in a preset's sample sizes, computed once for all processes and later runs."""

import hashlib
from collections.abc import Iterable
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from datasets import Dataset

from pipeline import tasks
from pipeline.arena.plan import TrainingRun, digests
from pipeline.arena.preset import VERSION
from pipeline.core import artifacts
from pipeline.core.errors import UserError
from pipeline.data import base_models, datasets, sources, tokens
from pipeline.tasks import Facts, Task, facts
from pipeline.tasks.cells import has_mirrors
from pipeline.tasks.encoding import BATCH, write
from pipeline.tasks.task import EXPECTED, GROUP, TENANT

FOLDER = Path(".cache/arena")
AT_ONCE = 64  # examples or prompts per batch if no gradient is needed
KEPT = (*tokens.INPUTS, GROUP, EXPECTED)


def splits(training: TrainingRun) -> dict[str, Dataset]:
    """Return the tokens of train, validation and test."""
    folder = folder_of(training)
    tables = dict[str, Dataset]()
    for split in datasets.SPLITS:
        path = folder / f"{split}.arrow"
        tables[split] = Dataset.from_file(str(path))
    return tables


def task_of(training: TrainingRun) -> Task:
    """Return the task of a training run, with the facts of its data."""
    return tasks.of(training.view.dataset, facts.read(folder_of(training)))


def write_labels(training: TrainingRun, path: Path) -> None:
    """Write the labels of the test split next to the records, in the order of the predictions."""
    test = splits(training)["test"]
    task = task_of(training)
    labels = tokens.labels_of(test)
    groups = tokens.groups_of(test)
    known = task.scoring.extract_targets(labels, groups)
    columns = dict[str, list[Any]]()
    if known.ndim == 1:
        columns["label"] = known.tolist()
    else:
        for number, labels in enumerate(known.T):
            columns[f"label_{number}"] = labels.tolist()
    if GROUP in test.column_names and len(test) == len(known):  # a group of choices is itself one example
        columns[GROUP] = test[GROUP][:]
    if TENANT in test.column_names:
        names = list(task.facts.tenants)
        columns[TENANT] = [names[number] for number in test[TENANT][:]]
    rows = zip(*columns.values(), strict=True)
    artifacts.write_csv(path, list(columns), rows)


def folder_of(training: TrainingRun) -> Path:
    """Return the folder with the tokens of a training run, which are computed if they are not cached."""

    def make(folder: Path) -> None:
        folder.mkdir()
        known, tables = _tables(training)
        for split, table in tables.items():
            lengths = table["length"].to_numpy()
            write([(table, lengths)], folder / f"{split}.arrow")
        known.write(folder)

    known = _compute_key(training)
    digest = hashlib.sha256(repr(known).encode())
    key = digest.hexdigest()[:16]
    return artifacts.build_once(FOLDER / f"tokens-{key}", make)


def _compute_key(training: TrainingRun) -> tuple[object, ...]:
    """Return all that determines the tokens of a training run."""
    view = training.view
    row = view.dataset
    known: tuple[object, ...] = (
        training.task,
        row.model_dump_json(),
        view.base_model.model_dump_json(),
        view.tokenize.max_length,
        training.sample_sizes,
        training.by_hash,
        digests((row.source, view.base_model.source)),
        VERSION,
        facts.FILE,
    )
    if view.standardizes_labels:
        known = (*known, facts.LabelScale.__name__)
    if has_mirrors(row):
        # Older tokens of texts of several columns may have, in two splits, the same texts in another order.
        known = (*known, datasets.MIRRORED)
    return known


def _tables(training: TrainingRun) -> tuple[Facts, dict[str, pa.Table]]:
    """Return the facts of the data, and the tokens by split.

    Raises:
        UserError: if the preset's sample cannot be compared or is empty.
    """
    _check_reads(training)
    task = training.task
    view = training.view
    sample_sizes = training.sample_sizes
    most = dict[str, float]()
    for name, amount in sample_sizes.model_dump().items():
        most[name] = inf if amount == "all" else amount
    tokenizer = base_models.load_tokenizer(view.base_model)
    loaded = datasets.load(view.dataset, task)
    texts = loaded.splits
    for split in training.by_hash:
        texts[split] = texts[split].in_order_of_hashes()
    tables: dict[str, pa.Table] = {}
    for split in datasets.SPLITS:
        with sources.wrap_reading_errors(f"{task}: {split}"):
            batches = texts[split].batches(BATCH)
            tokenized = loaded.task.preprocessor.tokenize(batches, tokenizer, view.tokenize.max_length)
            tables[split] = _short(tokenized, most["max_tokens"])
    if view.dataset.select_on == "validation":
        held_out = tables["validation"]
        spare = _first(tables["train"], most["train"], rest=True)
        tables["validation"] = pa.concat_tables([held_out, spare.select(held_out.column_names)])
    first = {split: _first(table, most[split]) for split, table in tables.items()}
    for name, table in first.items():
        if not len(table):
            raise UserError(
                f"{task}: {name} has no text of at most {sample_sizes.max_tokens} tokens; raise sample_sizes.max_tokens"
            )
    return _facts_of(training, loaded.task.facts, first["train"]), first


def _facts_of(training: TrainingRun, known: Facts, train: pa.Table) -> Facts:
    """Return the facts of the data, of which only these examples are trained on."""
    if TENANT in train.column_names:
        tenants = train[TENANT].to_numpy()
        known = known.with_counts(tenants)
    if not training.view.standardizes_labels:
        return known.without_label_scale()
    labels = train["label"].to_numpy()
    return known.with_label_scale(labels)


def _short(tokenized: Iterable[tuple[pa.Table, np.ndarray]], max_tokens: float) -> pa.Table:
    """Return the examples whose untruncated texts have at most this many tokens, with the kept columns."""
    parts = []
    for part, lengths in tokenized:
        kept = [name for name in part.column_names if name in KEPT]
        is_short = pa.array(lengths <= max_tokens)
        parts.append(part.select(kept).filter(is_short))
    return pa.concat_tables(parts)


def _check_reads(training: TrainingRun) -> None:
    """Check that a preset's sample of a task can be compared.

    Raises:
        UserError: if it cannot.
    """
    sample_sizes = training.sample_sizes
    if training.view.dataset.label.has_new_tokens and sample_sizes.max_new_tokens is None:
        raise UserError(
            f"{training.task}: completions are compared by what is written: set sample_sizes.max_new_tokens"
        )
    amounts = sample_sizes.model_dump().values()
    if training.view.dataset.is_grouped and any(amount != "all" for amount in amounts):
        reason = "examples are scored in groups, which must stay whole"
        raise UserError(f"{training.task}: {reason}: set all of sample_sizes to all")


def _first(table: pa.Table, amount: float, *, rest: bool = False) -> pa.Table:
    """Return the first rows of a table (per tenant, if there are tenants), or the rest."""
    tenants = np.zeros(len(table))
    if TENANT in table.column_names:
        tenants = table[TENANT].to_numpy()
    places = pd.Series(tenants).groupby(tenants).cumcount()
    is_first = (places < amount).to_numpy()
    return table.filter(pa.array(is_first != rest))
