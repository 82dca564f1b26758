"""Texts become tokens: from official files in each format, by the numbers of the tokenizer; the same bytes twice."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from transformers import AutoTokenizer

from pipeline import params
from pipeline.core import artifacts
from pipeline.data import datasets, files, tokens
from pipeline.tasks import encoding
from stages import tokenize
from tests import kit, tasks, workspace
from tests.kit import digests, write
from tests.pipeline.data.rows import frames
from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN, outcome, report, run

LONG = "the owl sleeps " * 20
ROWS = {
    "train": [("the cat", 1), ("the dog", 0), ("an owl", 1), (LONG, 1), ("The  cat", 1), ("", 0)],
    "validation": [("the cat rests", 1)],
    "test": [("a hen", 0), ("the hen", 0)],
}
ROW = workspace.ROWS["mine"]


def fill(split, rows):
    write(f"data/{split}.csv", [{"sentence": sentence, "label": label} for sentence, label in rows])


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A workspace with a row of small files."""
    monkeypatch.chdir(workspace.make(tmp_path, {"mine": ROW}, data="mine", tokenize={"max_length": 8}))
    for split, rows in ROWS.items():
        fill(split, rows)


def written(split="train"):
    with pa.OSFile(str(artifacts.tokens(split))) as file, pa.ipc.open_stream(file) as reader:
        return reader.read_all()


def test_f1_in_a_row_of_ones_own_is_that_of_the_class_which_train_has_less_of(here):
    write("data/datasets.yaml", {"own": {**ROW, "metrics": ["f1"]}})
    workspace.change(data="own")
    run(TOKENIZE, FACTORIZE, TRAIN, EVALUATE)
    task, found = outcome(params.load(params.EvaluateView), "test")
    assert (task.head.names, found.labels.tolist()) == (("positive", "negative"), [1, 1])
    assert [(one["class"], one["texts"]) for one in kit.table(artifacts.EVALUATE_CLASSES)][1] == ("negative", "2")
    assert "| f1 of negative |" in artifacts.CARD.read_text()
    fill("train", [("the cat", 1), ("the dog", 0)])
    run(TOKENIZE)
    task = tokens.load_task(params.load(params.TrainView).dataset)
    assert task.head.names == ("negative", "positive")


def test_tokens_are_those_of_the_tokenizer_and_the_report_counts_them_and_what_is_left_out(here):
    more = [("THE cat", 0), ("THE CAT", 1), ("the hen", 1), ("a hen", 0)]
    fill("train", ROWS["train"] + more)
    run(TOKENIZE)
    tokenizer, table = AutoTokenizer.from_pretrained("tiny-roberta"), written()
    texts = table["text"].to_pylist()
    assert sorted(texts) == sorted(["the cat", "the dog", "an owl", LONG])
    assert table["input_ids"].to_pylist() == tokenizer(texts, truncation=True, max_length=8)["input_ids"]
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    rows = {row["part"]: row for row in kit.table(artifacts.TOKENIZE_SPLITS)}
    found = rows["train"]
    assert [float(found[f"share_{name}"]) for name in ROW["label"]["names"]] == [0.25, 0.75]
    assert (int(found["rows"]), float(found["truncated_share"])) == (4, 0.25)
    assert int(found["tokens_max"]) == max(lengths)
    assert int(found["tokens_p50"]) == np.percentile(lengths, 50, method="higher")
    left_out = {part: int(row["rows"]) for part, row in rows.items() if part.startswith("left out: ")}
    assert list(left_out.values()) == [1, 0, 5, 2]  # missing, within the margin, duplicate, with another label
    histogram = [int(row["rows"]) for row in kit.table(artifacts.TOKENIZE_LENGTHS)]
    assert sum(histogram) == 4


def test_pairs_that_another_split_has_in_another_order_are_left_out_and_the_report_says_how_many(after, capfd):
    after()
    assert pd.read_csv(artifacts.TOKENIZE_SPLITS).query("part == 'left out: in another order'")["rows"].item() == 0
    file = "glue/mrpc/train-00000.parquet"
    train, test = pd.read_parquet(file), pd.read_parquet("glue/mrpc/validation-00000.parquet")
    mirrors = test[:7].rename(columns={"sentence1": "sentence2", "sentence2": "sentence1"})
    pd.concat([train, mirrors]).to_parquet(file, index=False)
    before = [written(split) for split in ("train", "validation", "test")]
    run(TOKENIZE)
    assert pd.read_csv(artifacts.TOKENIZE_SPLITS).query("part == 'left out: in another order'")["rows"].item() == 7
    assert "\nrows left out: 7 in another order\n" in capfd.readouterr().out
    assert [written(split) for split in ("train", "validation", "test")] == before


def test_texts_that_validation_and_test_share_are_kept_and_a_line_says_how_many(here, capfd):
    run(TOKENIZE)
    assert "validation, too" not in "".join(capfd.readouterr())
    shared = [("a cat they share", 1), ("a dog they share", 0)]
    for split in ("validation", "test"):
        fill(split, [*ROWS[split], *shared])
    run(TOKENIZE)
    assert "2 texts of test are in validation, too, which chooses the checkpoint" in "".join(capfd.readouterr())
    assert [len(written(split)) for split in ("validation", "test")] == [
        len(ROWS[name]) + 2 for name in ("validation", "test")
    ]


def test_two_runs_write_the_same_bytes_and_parts_of_a_split_the_same_rows(here, monkeypatch):
    run(TOKENIZE)
    first, whole = digests("artifacts", "reports"), written()
    run(TOKENIZE)
    assert digests("artifacts", "reports") == first
    monkeypatch.setattr(tokenize, "BATCH", 1)
    monkeypatch.setattr(encoding, "TOGETHER", 3)
    run(TOKENIZE)
    assert written()["label"].num_chunks == 2
    assert written().equals(whole)


@pytest.fixture
def row_of(tmp_path, monkeypatch):
    """A function from a task to its row, from files whose rows come once in each split; it cuts no split."""
    monkeypatch.chdir(tmp_path)
    workspace.copy_committed()

    def build(task):
        tasks.use_files(tmp_path, task, train=1, test=1)
        return params.load_entry("data", task).model_copy(update={"split": {}, "select_on": "test"})

    return build


@pytest.mark.parametrize("rows", [1, 1000])
@pytest.mark.parametrize("task", tasks.EXAMPLES)
def test_the_official_files_are_read_some_rows_at_a_time(task, rows, row_of, monkeypatch):
    monkeypatch.setattr(files, "ROWS", rows)
    found = frames(datasets.load(row_of(task), "mine"))
    for split in ("train", "test"):
        examples = list(found[split].itertuples(index=False, name=None))
        named = [[str(value).replace("SPLIT", f"{split} 0") for value in one] for one in tasks.EXAMPLES[task]]
        in_order = list if split == "test" else sorted  # train is ordered by the hash of the texts
        assert in_order([[str(value) for value in one] for one in examples]) == in_order(named)


def test_groups_are_cut_together_and_scored_while_training_as_afterwards(tmp_path, monkeypatch):
    monkeypatch.chdir(workspace.make(tmp_path, data="multirc", train={"epochs": 1}))
    tasks.use_files(tmp_path, "multirc", train=60, test=12)
    run(TOKENIZE, FACTORIZE, TRAIN, EVALUATE)
    texts = {split: set(tokens.load_texts(split)["text"]) for split in datasets.SPLITS}
    assert len(texts["validation"]) > 1
    assert not texts["train"] & texts["validation"]
    task, found = outcome(params.load(params.TrainView), "validation")
    assert task.scoring.scores(found)["f1"] == pytest.approx(report(artifacts.TRAIN_METRICS)["best_score"], abs=1e-6)
    metrics = report(artifacts.EVALUATE_METRICS)
    assert metrics["examples"] == 3 * 12
    assert metrics["exact_match_low"] <= metrics["exact_match"] <= metrics["exact_match_high"]


def test_what_is_read_is_mapped_and_takes_no_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    count = 200_000
    ids = pa.array([[2, number % 1000, 3] for number in range(count)], pa.list_(pa.int32()))
    numbers = pa.array(range(count), pa.int64())
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
