"""Turn the texts of a data set into tokens. Reads the rows that params.yaml chooses, and the files that they name.

Writes artifacts/tokens/, with a file each for train, validation and test; artifacts/inputs.json, the SHA-256 of those
rows and files, on which later stages depend instead of the tables and all of data/ and models/; and
reports/tokenize/metrics.json and lengths.csv. Lengths in the reports are those of whole texts, before truncation to
`max_length`, to show the effect of another value.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from pipeline import params, stage, tasks
from pipeline.core import artifacts, console
from pipeline.data import content, datasets
from pipeline.data.encoding import tokenize, write
from pipeline.tasks import Task

BINS = 30


def summarize(
    split: str, labels: np.ndarray, lengths: np.ndarray, task: Task, max_length: int
) -> dict[str, artifacts.Value]:
    """Return the metrics of a split: rows, labels, lengths in tokens, and the share of truncated texts."""
    metrics: dict[str, artifacts.Value] = {"rows": len(lengths)}
    metrics |= task.counts(labels)
    for percent in (50, 95, 99):  # "higher": a length that occurs, not one between two
        metrics[f"tokens_p{percent}"] = int(np.percentile(lengths, percent, method="higher"))
    metrics["tokens_max"] = int(lengths.max())
    metrics["truncated_share"] = float((lengths > max_length).mean())
    return {f"{split}_{name}": value for name, value in metrics.items()}


def histogram(lengths: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield the lower edge (tokens) of each bin and its number of texts; bins are equally wide and begin at 0."""
    width = -(-(int(lengths.max()) + 1) // BINS)
    for number, rows in enumerate(np.bincount(lengths // width)):
        yield number * width, int(rows)


def inputs(view: params.TokenizeView) -> dict[str, str]:
    """Return the SHA-256 of the rows of the model and the data, and of each local file of theirs.

    Raises:
        UserError: if a file or folder does not exist, or is where DVC would not notice changes.
    """
    # A folder that `model` itself names is the path that messages name anyway.
    is_named = Path(view.model) in content.named(view.base_model.source)
    where = view.base_model.where if is_named else f"{view.base_model.where}: {view.model}"
    found = {f"model: {view.model}": content.sha256_of(view.base_model)}
    found |= content.digests(view.base_model.source, where)
    found |= {f"data: {view.data}": content.sha256_of(view.dataset)}
    found |= content.digests(view.dataset.source, f"{view.dataset.where}: {view.data}")
    if view.frames != "own":
        found |= content.digests(view.frames, f"{params.PARAMS}: lsr.frames")
    if "/" in view.init:  # another adapter, and not a word
        found |= content.digests(view.init, f"{params.PARAMS}: lsr.init")
    return found


def main(view: params.TokenizeView) -> None:
    named = inputs(view)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # set explicitly, so that no later fork warns about it
    task, max_length = tasks.of(view.dataset), view.tokenize.max_length
    splits, dropped, conflicting = datasets.load(view.dataset, view.data)
    from pipeline.data import pretrained  # takes seconds, so after all checks that do not need it

    pretrained.load_config(view.base_model)
    tokenizer = pretrained.load_tokenizer(view.base_model)
    pretrained.check_length(tokenizer.model_max_length, max_length)
    metrics: dict[str, artifacts.Value] = {f"rows_dropped_{reason}": count for reason, count in dropped.items()}
    metrics["rows_conflicting"] = conflicting
    # A param with the name of a metric is params.yaml:data in DVC's tables. Otherwise they would take it for the folder
    # data, on which this stage depends: `dvc exp show` would print its hash, and move all later columns.
    metrics["data"] = view.data
    whole = {}
    total = sum(len(texts) for texts in splits.values())
    with artifacts.replacing(artifacts.TOKENS) as folder, console.progress("tokenize", total, "texts") as advance:
        folder.mkdir()
        for split, texts in splits.items():
            table, whole[split] = tokenize(texts, tokenizer, max_length, advance)
            write(table, folder / artifacts.tokens(split).name)
            metrics |= summarize(split, np.array(texts["label"]), whole[split], task, max_length)
    artifacts.write_metrics(artifacts.INPUTS, named)
    artifacts.write_csv(artifacts.TOKENIZE_LENGTHS, ("length", "rows"), histogram(whole["train"]))
    artifacts.write_metrics(artifacts.TOKENIZE_METRICS, metrics)
    _report(view, splits, metrics)


def _report(view: params.TokenizeView, splits: Iterable[str], metrics: Mapping[str, artifacts.Value]) -> None:
    columns = ("split", "rows", "p50", "p95", "truncated")
    rows = [
        (
            split,
            metrics[f"{split}_rows"],
            metrics[f"{split}_tokens_p50"],
            metrics[f"{split}_tokens_p95"],
            f"{metrics[f'{split}_truncated_share']:.1%}",
        )
        for split in splits
    ]
    console.table(f"{view.data}: tokens of whole texts, truncated to {view.tokenize.max_length}", columns, rows)
    reasons = ", ".join(f"{metrics[f'rows_dropped_{reason}']} {reason}" for reason in datasets.DROPPED)
    conflicts = f"{metrics['rows_conflicting']} of them with another label than the row kept"
    console.line(f"rows left out: {reasons.replace('_', ' ')}, {conflicts}")


if __name__ == "__main__":
    stage.run(main, params.TokenizeView)
