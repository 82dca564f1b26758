"""Accuracy on domains of which no text was in training: each pair of the eight domains of `tenant-heads` once.

The pipeline trains on the other six domains and scores the pair with 0 to 60 labels, as for any tenants that a data set
holds out. Each domain has as many texts as in the task `alike-260`.
"""

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.add.__main__ import main as add
from pipeline.core import artifacts, console
from pipeline.core.console import Parser, whole_number
from pipeline.core.dvc import run_dvc
from pipeline.core.errors import UserError
from pipeline.params.reading import check_entries

SOURCE = Path("data/tenants")  # the files of the preset
WRITTEN = Path("data/unseen")
RESULTS = Path("benchmarks/results/unseen_domains.json")
PAIRS = (
    ("baby", "health_personal_care"),
    ("books", "kitchen_housewares"),
    ("dvd", "sports_outdoors"),
    ("electronics", "toys_games"),
)
HEADS = ("auto", "shared")
TRAIN_TEXTS = 208  # of each domain; the next ones are for validation
VALIDATION_TEXTS = 52
TEST_TEXTS = 200

Scores = dict[str, dict[str, float]]  # by method, then by number of labels


def main(arguments: Sequence[str] | None = None) -> None:
    """Train once per pair, head and seed, and write the accuracies of each run.

    Raises:
        UserError: if the files are missing, or a run fails.
    """
    with _parser().parse(arguments, "stopped; runs that are done are kept") as options:
        write_files()
        names = [_add_entry(number, pair) for number, pair in enumerate(PAIRS)]
        runs = list(product(options.seeds, HEADS, names))
        with console.progress("unseen domains", len(runs), "training runs") as advance:
            for seed, head, name in runs:
                measure(name, head, seed)
                advance(1)


def _parser() -> Parser:
    parser = Parser(
        "python -m benchmarks.unseen_domains",
        "Train on six of the eight domains of the benchmark tenant-heads, whose files it needs, score the other two, "
        f"and so for each pair; write the accuracies to {RESULTS}. Reports and parameters are then those of the last "
        "run.",
    )
    seeds = "seeds of the training runs (default: 0)"
    parser.add_argument("--seeds", type=whole_number(0, 2**32 - 1), nargs="+", default=[0], metavar="N", help=seeds)
    return parser


def write_files() -> None:
    """Write the first texts of each domain as three files, one per split.

    Raises:
        UserError: if the files of the benchmark are missing.
    """
    if not (SOURCE / "train.csv").exists():
        raise UserError(f"{SOURCE}/train.csv: no such file; docs/how-to/compare.md says how to make it")
    train = pd.read_csv(SOURCE / "train.csv")
    test = pd.read_csv(SOURCE / "test.csv")
    place = train.groupby("tenant").cumcount()
    is_train = place < TRAIN_TEXTS
    is_validation = ~is_train & (place < TRAIN_TEXTS + VALIDATION_TEXTS)
    is_test = test.groupby("tenant").cumcount() < TEST_TEXTS
    splits = {"train": train[is_train], "validation": train[is_validation], "test": test[is_test]}
    WRITTEN.mkdir(parents=True, exist_ok=True)
    for split, table in splits.items():
        table.to_csv(WRITTEN / f"{split}.csv", index=False)


def _add_entry(number: int, pair: Sequence[str]) -> str:
    """Return the name of the data set that holds out a pair, after adding it if it is new."""
    name = f"unseen-{number}"
    if name not in check_entries("data"):
        files = [str(WRITTEN / f"{split}.csv") for split in ("train", "validation", "test")]
        train, validation, test = files
        splits = [train, "--validation", validation, "--test", test]
        add([*splits, "--tenant", "tenant", "--held-out-tenants", *pair, "--name", name])
    return name


def measure(name: str, head: str, seed: int) -> None:
    """Train on a data set unless its accuracies are known, and keep the accuracies of its held-out tenants.

    Raises:
        UserError: if the run fails.
    """
    known = _read_results()
    by_pair = known.setdefault(head, {}).setdefault(str(seed), {})
    if name in by_pair:
        return
    chosen = {"data": name, "adapter": "lora", "tenants.head": head, "seed": str(seed)}
    overrides = [f"-S{key}={value}" for key, value in chosen.items()]
    run = run_dvc("exp", "run", *overrides)
    if run.returncode:
        raise UserError(f"{name}, head {head}, seed {seed}: {run.stderr.strip()}")
    scores = scores_of(pd.read_csv(artifacts.EVALUATE_HELD_OUT))
    by_pair[name] = scores
    RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    console.line(f"{name}, head {head}, seed {seed}: {scores}")


def scores_of(report: pd.DataFrame) -> Scores:
    """Return the accuracies in the report on held-out tenants."""
    scores: Scores = {}
    for row in report.itertuples():
        method = "regression" if "regression" in str(row.method) else "model"
        scores.setdefault(method, {})[str(row.labels)] = float(row.score)
    return scores


def _read_results() -> dict[str, Any]:
    if not RESULTS.exists():
        return {}
    known: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return known


if __name__ == "__main__":
    main()
