"""Turn the texts of a data set into tokens. Reads the rows that params.yaml chooses, and the files that they name.

Writes artifacts/tokens/, with a file each for train, validation and test; artifacts/inputs.json, the SHA-256 of those
rows and files, on which later stages depend instead of the tables and all of data/; and reports/tokenize/splits.csv and
lengths.csv. Lengths in the reports are those of whole texts, before truncation to `max_length`, to show the effect of
another value.
"""

import os

import numpy as np

from pipeline import params, stage
from pipeline.core import artifacts, console
from pipeline.core.errors import UserError
from pipeline.data import datasets, inputs, sources
from pipeline.tasks import Task
from pipeline.tasks.encoding import BATCH, write

BINS = 30


def summarize(labels: np.ndarray, lengths: np.ndarray, task: Task, max_length: int) -> dict[str, artifacts.Value]:
    """Return what a split holds: rows, lengths in tokens, the share of truncated texts, and labels."""
    # "higher": a length that occurs, not one between two.
    most = {f"tokens_p{share}": int(np.percentile(lengths, share, method="higher")) for share in (50, 95, 99)}
    ends = {"tokens_max": int(lengths.max()), "truncated_share": float((lengths > max_length).mean())}
    return {"rows": len(lengths), **most, **ends, **task.counts(labels)}


def main(view: params.TokenizeView) -> None:
    named = inputs.recorded(view)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # set explicitly, so that no later fork warns about it
    max_length = view.tokenize.max_length
    task, splits, dropped, conflicting = datasets.load(view.dataset, view.data)
    from pipeline.data import base_models  # takes seconds, so after all checks that do not need it

    base_models.load_config(view.base_model, task)
    tokenizer = base_models.load_tokenizer(view.base_model)
    base_models.check_length(tokenizer.model_max_length, max_length)
    counts, whole = {}, {}
    total = sum(len(texts) for texts in splits.values())
    with artifacts.replacing(artifacts.TOKENS) as folder, console.progress("tokenize", total, "texts") as advance:
        folder.mkdir()
        for split, texts in splits.items():
            with sources.explained(f"{view.dataset.where}: {view.data}: {split}"):
                found = task.tokenized(texts.batches(BATCH, advance), tokenizer, max_length)
                whole[split] = write(found, folder / artifacts.tokens(split).name)
            if too_long := len(texts) - len(whole[split]):
                dropped["too_long"] = dropped.get("too_long", 0) + too_long
            if too_long == len(texts):
                raise UserError(
                    f"{params.PARAMS}: tokenize.max_length: no completion of {split} fits {max_length} tokens"
                )
            counts[split] = summarize(texts["label"], whole[split], task, max_length)
        task.facts.write(folder)
    artifacts.write_metrics(artifacts.INPUTS, named)
    width = -(-(int(whole["train"].max()) + 1) // BINS)  # tokens; the bins begin at 0
    bins = [(number * width, int(rows)) for number, rows in enumerate(np.bincount(whole["train"] // width))]
    artifacts.write_csv(artifacts.TOKENIZE_LENGTHS, ("length", "rows"), bins)
    if rare := task.rare(splits["train"]["label"]):
        console.warn(f"rare classes in train: {rare}")
    left_out = {reason.replace("_", " "): count for reason, count in dropped.items()}
    columns = list(counts["train"])
    rows: list[tuple[artifacts.Value, ...]] = [(split, *found.values()) for split, found in counts.items()]
    for reason, count in {**left_out, "duplicate with another label": conflicting}.items():
        rows.append((f"left out: {reason}", count, *[""] * (len(columns) - 1)))
    artifacts.write_csv(artifacts.TOKENIZE_SPLITS, ["part", *columns], rows)
    shown = [
        (split, found["rows"], found["tokens_p50"], found["tokens_p95"], f"{found['truncated_share']:.1%}")
        for split, found in counts.items()
    ]
    title = f"{view.data}: tokens of whole texts, truncated to {view.tokenize.max_length}"
    console.table(title, ("split", "rows", "p50", "p95", "truncated"), shown)
    reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
    console.line(f"rows left out: {reasons}; of duplicates {conflicting} with another label than the row kept")


if __name__ == "__main__":
    stage.run(main, params.TokenizeView)
