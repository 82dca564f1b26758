"""Turn the texts of a data set into tokens. Reads the rows that params.yaml chooses, and the files that they name.

Writes artifacts/tokens/, with a file each for train, validation and test, and facts.json, if something was
found in the data that its row does not say; artifacts/inputs.json, the SHA-256 of those
rows and files, on which later stages depend instead of the tables and all of data/; and reports/tokenize/splits.csv and
lengths.csv. Lengths in the reports are those of whole texts, before truncation to `max_length`, to show the effect of
another value.
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


Counts = dict[str, artifacts.Value]


class Tokenized(NamedTuple):
    """What became of the texts of a split."""

    lengths: np.ndarray  # (examples,), in tokens, of whole texts
    too_long: int  # examples that do not fit, which are left out
    counts: Counts


def main(view: params.TokenizeView) -> None:
    named = inputs.recorded(view)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # set explicitly, so that no later fork warns about it
    loaded = datasets.load(view.dataset, view.data)
    tokenizer = tokenizer_of(view, loaded.task)
    splits = tokenize(view, loaded, tokenizer)
    artifacts.write_metrics(artifacts.INPUTS, named)
    write_lengths(splits["train"].lengths)
    if rare := loaded.task.rare(loaded.splits["train"]["label"]):
        console.warn(f"rare classes in train: {rare}")
    dropped = dict(loaded.dropped)
    too_long = sum(split.too_long for split in splits.values())
    if too_long:
        dropped["too_long"] = too_long
    left_out = {reason.replace("_", " "): count for reason, count in dropped.items()}
    write_splits(splits, left_out, loaded.conflicting)
    print_splits(view, splits, left_out, loaded.conflicting)


def tokenizer_of(view: params.TokenizeView, task: Task) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of the chosen model, which must fit the task and the length."""
    from pipeline.data import base_models  # takes seconds, so after all checks that do not need it

    base_models.load_config(view.base_model, task)
    tokenizer = base_models.load_tokenizer(view.base_model)
    base_models.check_length(tokenizer.model_max_length, view.tokenize.max_length)
    return tokenizer


def tokenize(
    view: params.TokenizeView, loaded: datasets.Loaded, tokenizer: "PreTrainedTokenizerBase"
) -> dict[str, Tokenized]:
    """Write the tokens of all splits, with the facts of their data, and return what became of each.

    Raises:
        UserError: if an example cannot become tokens, or none of a split fits.
    """
    max_length = view.tokenize.max_length
    total = sum(len(examples) for examples in loaded.splits.values())
    tokenized = dict[str, Tokenized]()
    with artifacts.replacing(artifacts.TOKENS) as folder, console.progress("tokenize", total, "texts") as advance:
        folder.mkdir()
        for split, examples in loaded.splits.items():
            with sources.explained(f"{view.dataset.where}: {view.data}: {split}"):
                batches = loaded.task.tokenized(examples.batches(BATCH, advance), tokenizer, max_length)
                lengths = write(batches, folder / artifacts.tokens(split).name)
            if not len(lengths):
                reason = f"no completion of {split} fits {max_length} tokens"
                raise UserError(f"{params.PARAMS}: tokenize.max_length: {reason}")
            counts = summarize(examples["label"], lengths, loaded.task, max_length)
            tokenized[split] = Tokenized(lengths, len(examples) - len(lengths), counts)
        loaded.task.facts.write(folder)
    return tokenized


def summarize(labels: np.ndarray, lengths: np.ndarray, task: Task, max_length: int) -> Counts:
    """Return what a split holds: rows, lengths in tokens, the share of truncated texts, and labels."""
    counts: Counts = {"rows": len(lengths)}
    for share in (50, 95, 99):
        # "higher": a length that occurs, not one between two.
        counts[f"tokens_p{share}"] = int(np.percentile(lengths, share, method="higher"))
    counts["tokens_max"] = int(lengths.max())
    counts["truncated_share"] = float((lengths > max_length).mean())
    return {**counts, **task.counts(labels)}


def write_lengths(lengths: np.ndarray) -> None:
    """Write how many texts have lengths in each of BINS bins, which begin at 0."""
    width = -(-(int(lengths.max()) + 1) // BINS)  # tokens
    rows = np.bincount(lengths // width)
    bins = [(number * width, int(count)) for number, count in enumerate(rows)]
    artifacts.write_csv(artifacts.TOKENIZE_LENGTHS, ("length", "rows"), bins)


def write_splits(splits: Mapping[str, Tokenized], left_out: Mapping[str, int], conflicting: int) -> None:
    """Write a row for each split, and one for each reason for which rows are left out."""
    columns = list(splits["train"].counts)
    rows = list[list[artifacts.Value]]()
    for split, tokenized in splits.items():
        rows.append([split, *tokenized.counts.values()])
    for reason, count in {**left_out, "duplicate with another label": conflicting}.items():
        rows.append([f"left out: {reason}", count, *[""] * (len(columns) - 1)])
    artifacts.write_csv(artifacts.TOKENIZE_SPLITS, ["part", *columns], rows)


def print_splits(
    view: params.TokenizeView, splits: Mapping[str, Tokenized], left_out: Mapping[str, int], conflicting: int
) -> None:
    """Print the main figures of each split, and what is left out."""
    rows = []
    for split, tokenized in splits.items():
        counts = tokenized.counts
        truncated = f"{counts['truncated_share']:.1%}"
        rows.append((split, counts["rows"], counts["tokens_p50"], counts["tokens_p95"], truncated))
    title = f"{view.data}: tokens of whole texts, truncated to {view.tokenize.max_length}"
    console.table(title, ("split", "rows", "p50", "p95", "truncated"), rows)
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
    console.line(f"rows left out: {reasons}; of duplicates {conflicting} with another label than the row kept")


if __name__ == "__main__":
    stage.run(main, params.TokenizeView)
