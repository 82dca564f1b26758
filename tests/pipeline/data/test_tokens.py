"""Tokenized splits lie in files that are mapped into memory."""

import pyarrow as pa

from pipeline.core import artifacts
from pipeline.data import tokens

ROWS = 200_000


def test_what_is_read_is_mapped_and_takes_no_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ids = pa.array([[2, number % 1000, 3] for number in range(ROWS)], pa.list_(pa.int32()))
    numbers = pa.array(range(ROWS), pa.int64())
    table = pa.table({"input_ids": ids, "length": numbers, "label": numbers, "text": numbers.cast(pa.string())})
    path = artifacts.tokens("train")
    path.parent.mkdir(parents=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=10_000)
    before = pa.total_allocated_bytes()
    split, texts = tokens.load_tokens("train"), tokens.load_texts("train")["text"]
    assert pa.total_allocated_bytes() - before < 100_000 < path.stat().st_size / 80
    assert split.column_names == ["input_ids", "length", "label"]
    assert split[[150_000, 7]]["input_ids"] == [[2, 0, 3], [2, 7, 3]]
    assert next(iter(texts)) == "0"
