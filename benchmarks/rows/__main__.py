"""The cost of many rows: seconds and peak memory of each stage, with a tiny model and generated texts.

Every stage runs in its own process, in a temporary folder that needs about 1 kB per row. Peaks include pages of mapped
files that the process has touched, which the system reclaims when it needs them. Results are in
benchmarks/results/rows.json.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ruamel.yaml import YAML
from transformers import BertConfig, BertModel

from benchmarks import figures
from benchmarks.processes import BYTES_OF_MAXRSS
from pipeline import params
from pipeline.core import artifacts, console
from pipeline.core.errors import UserError, exit_on_error
from pipeline.methods import base_models

ROOT = Path(__file__).parents[2]
RESULTS = figures.FOLDER / "rows.json"
STAGES = ("tokenize", "factorize_init", "train", "evaluate")
WORDS = (5, 35)  # per text, about 120 characters on average
SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
LIMIT = 4e9  # bytes


class Row(NamedTuple):
    """A run of a stage."""

    stage: str
    rows: int
    seconds: float
    peak_bytes: int


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: with code 2 if a stage fails or needs more memory than the limit, 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rows", description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=3_000_000, help="rows of the data set (default: 3000000)")
    options = parser.parse_args(arguments)
    with exit_on_error("stopped; the results are unchanged"), tempfile.TemporaryDirectory() as name:
        where = figures.machine(threads=1)
        fill(Path(name), options.rows)
        found = [measured(Path(name), stage, options.rows) for stage in STAGES]
        shown = [(row.stage, row.seconds, row.peak_bytes / 1e9) for row in found]
        console.table(f"{options.rows:,} rows", ["stage", "seconds", "peak GB"], shown)
        if options.rows == parser.get_default("rows"):
            figures.write(RESULTS, "stages", where, [row._asdict() for row in found])
        check(found)


def check(found: Sequence[Row]) -> None:
    """Check that every stage stayed within the limit.

    Raises:
        UserError: if one has not.
    """
    if over := [row.stage for row in found if row.peak_bytes > LIMIT]:
        raise UserError(f"over {LIMIT / 1e9:g} GB: {', '.join(over)}")


def fill(folder: Path, count: int) -> None:
    """Write the inputs of the stages into a folder: params, the two tables, a tiny model and `count` texts."""
    words = _save_model(folder / "models/tiny")
    (folder / "data").mkdir()
    with (folder / "data/texts.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(console.track(_texts(count, words), "make texts", count, "texts"))
    values = _read(params.PARAMS)
    values |= {"data": "texts", "model": "tiny"}
    values["train"] |= {"epochs": 1, "batch_size": 512}
    values["evaluate"] |= {"batch_size": 512, "resamples": 100}
    _write(folder / params.PARAMS, values)
    for word, row in {"data": _DATA, "model": _MODEL}.items():
        _write(folder / params.TABLES[word][0], {{"data": "texts", "model": "tiny"}[word]: row})
    for path in (artifacts.DATA_FILES, artifacts.MODEL_FILES, artifacts.FRAMES_FILES):  # no files to hash
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text("{}", encoding="utf-8")


_DATA = {
    "source": {"kind": "files", "files": {"train": "data/texts.csv"}},
    "text": ["text"],
    "label": {"column": "label", "names": ["even", "odd"]},
    "metrics": ["accuracy"],
    "cut": {"validation": 0.1, "test": 0.1},
}
_MODEL = {
    "source": {"kind": "hub", "path": "models/tiny"},
    "target_modules": ["query", "value"],
    "head": ["classifier"],
}


def _save_model(folder: Path) -> list[str]:
    """Write a tiny model with the tokenizer of MiniLM; return the words that are one token each."""
    tokenizer = base_models.load_tokenizer(params.load_row("model", "minilm"))
    tokenizer.save_pretrained(folder)
    BertModel(BertConfig(vocab_size=len(tokenizer), **SIZES)).save_pretrained(folder)
    return sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha())


def _texts(count: int, words: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield texts of random words, each with the parity of the number of words."""
    random, known = np.random.default_rng(0), np.array(words, dtype=object)
    for length in random.integers(*WORDS, size=count).tolist():
        yield " ".join(known[random.integers(len(known), size=length)]), length % 2


def measured(folder: Path, stage: str, count: int) -> Row:
    """Run a stage in its own process.

    Raises:
        UserError: if it fails.
    """
    begin = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("DVC_ROOT", None)
    process = subprocess.Popen([sys.executable, "-m", f"stages.{stage}"], cwd=folder, env=environment)  # noqa: S603 our own words, no shell
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"{stage}: ended with {process.returncode}")
    return Row(stage, count, time.perf_counter() - begin, usage.ru_maxrss * BYTES_OF_MAXRSS)


def _read(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path)


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        YAML(typ="safe", pure=True).dump(content, file)


if __name__ == "__main__":
    main()
