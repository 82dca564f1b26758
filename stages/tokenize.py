"""Tokenize the texts of a data set. Reads the entries that params.yaml chooses, and the files that they name.

Writes artifacts/tokens/, with a file each for train, validation and test, and facts.json, if the data determine facts
that the entry leaves open; artifacts/inputs.json, the SHA-256 of these entries and files, on which later stages depend
instead of the registries and all of data/; and reports/tokenize/splits.csv and lengths.csv. Lengths in the reports are
of whole texts, before truncation to `max_length`, to show the effect of another value.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline import params, stage
from pipeline.core import artifacts, console
from pipeline.core.errors import UserError
from pipeline.data import datasets, inputs, sources
from pipeline.tasks import Task
from pipeline.tasks.encoding import BATCH, write

if TYPE_CHECKING:  # it takes seconds to import
    from transformers import PreTrainedTokenizerBase

BINS = 30
SHARES = (50, 95, 99)  # percentiles of the lengths of texts
CONFLICTING = "duplicate with another label"

Counts = dict[str, artifacts.Value]


class Tokenized(NamedTuple):
    """Statistics of the texts of a tokenized split."""

    lengths: np.ndarray  # (examples,), in tokens, of whole texts
    too_long: int  # examples that do not fit, which are left out
    counts: Counts


def main(view: params.TokenizeView) -> None:
    named = inputs.compute_digests(view)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # set explicitly, so that no later fork warns about it
    loaded = datasets.load(view.dataset, view.data)
    tokenizer = tokenizer_of(view, loaded.task)
    splits = tokenize(view, loaded, tokenizer)
    artifacts.write_metrics(artifacts.INPUTS, named)
    train = splits["train"]
    write_lengths(train.lengths)
    labels = loaded.splits["train"]["label"]
    rare = loaded.task.description.rare(labels)
    if rare:
        console.warn(f"rare classes in train: {rare}")
    if loaded.shared:
        console.warn(loaded.describe_shared())
    left_out = left_out_of(loaded, splits)
    write_splits(splits, {**left_out, CONFLICTING: loaded.conflicting})
    print_splits(view, splits, left_out, loaded.conflicting)


def left_out_of(loaded: datasets.Loaded, splits: Mapping[str, Tokenized]) -> dict[str, int]:
    """Count the left-out rows by reason."""
    left_out = dict[str, int]()
    for reason, count in loaded.dropped.items():
        left_out[reason.replace("_", " ")] = count
    counts = [split.too_long for split in splits.values()]
    too_long = sum(counts)
    if too_long:
        left_out["too long"] = too_long
    return left_out


def tokenizer_of(view: params.TokenizeView, task: Task) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of the chosen model, and check that it fits the task and the length."""
    from pipeline.data import base_models  # takes seconds, so after all checks that do not need it

    base_models.load_config(view.base_model, task)
    tokenizer = base_models.load_tokenizer(view.base_model)
    base_models.check_length(tokenizer.model_max_length, view.tokenize.max_length)
    return tokenizer


def tokenize(
    view: params.TokenizeView, loaded: datasets.Loaded, tokenizer: "PreTrainedTokenizerBase"
) -> dict[str, Tokenized]:
    """Write the tokens of all splits with the facts of the data, and return the statistics of each split.

    Raises:
        UserError: if an example cannot be tokenized, or none of a split fits.
    """
    max_length = view.tokenize.max_length
    task = loaded.task
    sizes = map(len, loaded.splits.values())
    total = sum(sizes)
    tokenized = dict[str, Tokenized]()
    with (
        artifacts.replace_atomically(artifacts.TOKENS) as folder,
        console.progress("tokenize", total, "texts") as advance,
    ):
        folder.mkdir()
        for split, examples in loaded.splits.items():
            where = f"{view.dataset.where}: {view.data}: {split}"
            with sources.wrap_reading_errors(where):
                batches = examples.batches(BATCH, advance)
                tokens = task.preprocessor.tokenize(batches, tokenizer, max_length)
                name = artifacts.tokens(split).name
                lengths = write(tokens, folder / name)
            if not len(lengths):
                reason = f"no completion of {split} fits {max_length} tokens"
                raise UserError(f"{params.PARAMS}: tokenize.max_length: {reason}")
            counts = summarize(examples["label"], lengths, task, max_length)
            too_long = len(examples) - len(lengths)
            tokenized[split] = Tokenized(lengths, too_long, counts)
        facts = task.facts if view.standardizes_labels else task.facts.without_label_scale()
        facts.write(folder)
    return tokenized


def summarize(labels: np.ndarray, lengths: np.ndarray, task: Task, max_length: int) -> Counts:
    """Summarize a split: rows, lengths in tokens, the share of truncated texts, and labels."""
    counts: Counts = {"rows": len(lengths)}
    for share in SHARES:
        # "higher": a length that occurs, not one between two.
        length = np.percentile(lengths, share, method="higher")
        counts[f"tokens_p{share}"] = int(length)
    is_truncated = lengths > max_length
    counts["tokens_max"] = int(lengths.max())
    counts["truncated_share"] = float(is_truncated.mean())
    return {**counts, **task.description.counts(labels)}


def write_lengths(lengths: np.ndarray) -> None:
    """Write the histogram of text lengths in BINS bins from 0."""
    longest = int(lengths.max())
    width = 1 + longest // BINS  # tokens
    counts = np.bincount(lengths // width)
    bins = list[tuple[int, int]]()
    for number, rows in enumerate(counts.tolist()):
        bins.append((number * width, rows))
    artifacts.write_csv(artifacts.TOKENIZE_LENGTHS, ("length", "rows"), bins)


def write_splits(splits: Mapping[str, Tokenized], left_out: Mapping[str, int]) -> None:
    """Write one row per split, and one per reason for left-out rows."""
    first, *others = splits["train"].counts
    empty = [""] * len(others)
    rows = list[list[artifacts.Value]]()
    for split, tokenized in splits.items():
        rows.append([split, *tokenized.counts.values()])
    for reason, count in left_out.items():
        rows.append([f"left out: {reason}", count, *empty])
    columns = ["part", first, *others]
    artifacts.write_csv(artifacts.TOKENIZE_SPLITS, columns, rows)


def print_splits(
    view: params.TokenizeView,
    splits: Mapping[str, Tokenized],
    left_out: Mapping[str, int],
    conflicting: int,
) -> None:
    """Print the main figures of each split, and the left-out rows."""
    rows = []
    for split, tokenized in splits.items():
        counts = tokenized.counts
        shown = [counts[name] for name in ("rows", "tokens_p50", "tokens_p95")]
        truncated = f"{counts['truncated_share']:.1%}"
        rows.append((split, *shown, truncated))
    title = f"{view.data}: tokens of whole texts, truncated to {view.tokenize.max_length}"
    console.table(title, ("split", "rows", "p50", "p95", "truncated"), rows)
    counted = [f"{count:,} {reason}" for reason, count in left_out.items() if count]
    line = f"rows left out: {', '.join(counted) or 'none'}"
    if conflicting:
        line += f"; duplicates with a conflicting label: {conflicting:,}"
    console.line(line)


if __name__ == "__main__":
    stage.run(
        main,
        params.TokenizeView,
        "Split the data set into train, validation and test, and tokenize it. Writes artifacts/tokens/, "
        "artifacts/inputs.json (SHA-256 of the registry entries and the data files) and reports/tokenize/.",
    )
