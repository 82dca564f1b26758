"""Texts become tokens: the numbers of the tokenizer, the files, the report, and the same bytes twice."""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from pipeline.core import artifacts
from pipeline.data import encoding
from tests import workspace
from tests.kit import digests, refused, write
from tests.stages.running import TOKENIZE, run

TABLE = Path("pipeline/datasets.yaml")
LONG = "the owl sleeps " * 20
ROWS = {
    "train": [("the cat", 1), ("the dog", 0), ("an owl", 1), (LONG, 1), ("The  cat", 1), ("", 0)],
    "validation": [("the cat rests", 1)],
    "test": [("a hen", 0), ("the hen", 0)],
}
ROW = {
    "source": {"kind": "files", "files": {split: f"data/{split}.csv" for split in ROWS}},
    "text": ["sentence"],
    "label": {"column": "label", "names": ["negative", "positive"]},
    "metrics": ["accuracy"],
}


def fill(split, rows):
    write(f"data/{split}.csv", [{"sentence": sentence, "label": label} for sentence, label in rows])


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A workspace with a row of small files."""
    monkeypatch.chdir(workspace.make(tmp_path, data="mine", tokenize={"max_length": 8}))
    write(TABLE, workspace.read_yaml(TABLE) | {"mine": ROW})
    for split, rows in ROWS.items():
        fill(split, rows)


def written(split="train"):
    with pa.OSFile(str(artifacts.tokens(split))) as file, pa.ipc.open_stream(file) as reader:
        return reader.read_all()


def test_tokens_are_those_of_the_tokenizer_and_the_report_counts_them_and_what_is_left_out():
    more = [("THE cat", 0), ("THE CAT", 1), ("the hen", 1), ("a hen", 0)]
    fill("train", ROWS["train"] + more)
    run(TOKENIZE)
    tokenizer, table = AutoTokenizer.from_pretrained("tiny-roberta"), written()
    texts = table["text"].to_pylist()
    assert sorted(texts) == sorted(["the cat", "the dog", "an owl", LONG])
    assert table["input_ids"].to_pylist() == tokenizer(texts, truncation=True, max_length=8)["input_ids"]
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    rows = {row["part"]: row for row in csv.DictReader(artifacts.TOKENIZE_SPLITS.open(newline=""))}
    found = rows["train"]
    assert [float(found[f"share_{name}"]) for name in ROW["label"]["names"]] == [0.25, 0.75]
    assert (int(found["rows"]), float(found["truncated_share"])) == (4, 0.25)
    assert int(found["tokens_max"]) == max(lengths)
    assert int(found["tokens_p50"]) == np.percentile(lengths, 50, method="higher")
    left_out = {part: int(row["rows"]) for part, row in rows.items() if part.startswith("left out: ")}
    assert list(left_out.values()) == [1, 0, 5, 2]  # missing, within the margin, duplicate, with another label
    histogram = [int(row["rows"]) for row in csv.DictReader(artifacts.TOKENIZE_LENGTHS.open(newline=""))]
    assert sum(histogram) == 4


def test_two_runs_write_the_same_bytes_and_parts_of_a_split_the_same_rows(monkeypatch):
    run(TOKENIZE)
    first, whole = digests("artifacts") | digests("reports"), written()
    run(TOKENIZE)
    assert digests("artifacts") | digests("reports") == first
    monkeypatch.setattr(encoding, "WRITTEN", 3)
    run(TOKENIZE)
    assert written()["label"].num_chunks == 2
    assert written().equals(whole)


def test_a_length_beyond_the_model_is_refused_with_the_limit():
    workspace.change(tokenize={"max_length": 33})
    refused(run, TOKENIZE, says="tokenize.max_length: the model takes at most 30 tokens, got 33")
