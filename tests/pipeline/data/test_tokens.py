"""Tokenized splits lie in files that are mapped into memory."""

import os

import pyarrow as pa
import pytest

from pipeline import artifacts
from pipeline.data import tokens
from pipeline.errors import UserError

ROWS = 200_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a split of some megabytes."""
    folder = tmp_path_factory.mktemp("tokens")
    ids = pa.array([[2, number % 1000, 3] for number in range(ROWS)], pa.list_(pa.int32()))
    numbers = pa.array(range(ROWS), pa.int64())
    table = pa.table({"input_ids": ids, "length": numbers, "label": numbers, "text": numbers.cast(pa.string())})
    path = folder / artifacts.tokens("train")
    path.parent.mkdir(parents=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=10_000)
    return folder


def test_what_is_read_is_mapped_and_takes_no_memory(folder, monkeypatch):
    monkeypatch.chdir(folder)
    before = pa.total_allocated_bytes()
    split, texts = tokens.load_tokens("train"), tokens.load_column("train", "text")
    assert pa.total_allocated_bytes() - before < 100_000  # the file has 8 MB
    assert artifacts.tokens("train").stat().st_size > 8_000_000
    assert split.column_names == ["input_ids", "length", "label"]
    assert split[[150_000, 7]]["input_ids"] == [[2, 0, 3], [2, 7, 3]]
    assert next(iter(texts)) == "0"


def test_a_file_that_is_cut_off_is_one_line(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = artifacts.tokens("train")
    path.parent.mkdir(parents=True)
    path.write_bytes((folder / path).read_bytes())
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError) as error:
        tokens.load_tokens("train")
    assert str(error.value).startswith("artifacts/tokens/train.arrow: corrupt or cut off: ")
    assert str(error.value).endswith("; run python -m stages.tokenize")
