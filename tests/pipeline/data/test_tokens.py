"""Tokenized splits lie in files that are mapped into memory."""

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast

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


@pytest.fixture(scope="module")
def collate():
    words = Tokenizer(models.WordLevel({"[PAD]": 0}))
    return DataCollatorWithPadding(PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]"))


@pytest.mark.parametrize(("count", "sizes"), [(20, [2, 6, 6, 6]), (1000, [4, *[6] * 16])])
def test_a_sample_has_batches_of_similar_length_in_random_order(collate, count, sizes):
    lengths = np.random.default_rng(0).integers(1, 60, 100)
    split = Dataset.from_dict(
        {"input_ids": [[7] * length for length in lengths], "length": lengths, "label": range(100), "text": ["a"] * 100}
    )
    found = list(tokens.sample(split, collate, count, seed=1, size=6))
    assert all(batch.keys() == {"input_ids", "attention_mask", "labels"} for batch in found)
    assert sorted(len(batch["labels"]) for batch in found) == sizes
    drawn = [label for batch in found for label in batch["labels"].tolist()]
    assert len(set(drawn)) == len(drawn) == sum(sizes)
    spans = [sorted(batch["attention_mask"].sum(1).tolist()) for batch in found]
    assert [length for span in spans for length in span] != sorted(lengths[drawn])
    assert [length for span in sorted(spans) for length in span] == sorted(lengths[drawn])
    assert [batch["input_ids"].shape[1] for batch in found] == [span[-1] for span in spans]
    again = [batch["labels"].tolist() for batch in tokens.sample(split, collate, count, seed=1, size=6)]
    assert again == [batch["labels"].tolist() for batch in found]
