"""Texts become tokens: the numbers of the tokenizer, the files, the report, and the same bytes twice."""

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pipeline import params
from pipeline.core import artifacts
from pipeline.data import encoding
from pipeline.params.dataset_row import DatasetRow
from pipeline.params.model_row import ModelRow
from stages import tokenize as stage
from tests.kit import refused

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film", "very"]


def save_tokenizer(folder, **settings):
    """A tokenizer of a few whole words, with BERT's special tokens."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    settings.setdefault("model_input_names", ["input_ids", "token_type_ids", "attention_mask"])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special, **settings).save_pretrained(folder)
    # As in every model folder: AutoTokenizer asks it which tokenizer there is.
    (Path(folder) / "config.json").write_text(json.dumps({"model_type": "bert"}))
    return str(folder)


@pytest.fixture
def folder(tmp_path):
    return save_tokenizer(tmp_path / "model", model_max_length=32)


@pytest.fixture
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def texts(*rows):
    columns = ["text", "text_pair", "label"] if len(rows[0]) == 3 else ["text", "label"]
    return Dataset.from_dict(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True)))


# The function


def test_tokens_are_those_of_the_tokenizer(tokenizer):
    table, lengths = stage.tokenize(texts(("good film", 1), ("bad", 0)), tokenizer, 8)
    assert table.to_pydict() == {
        "input_ids": [[2, 4, 6, 3], [2, 5, 3]],
        "token_type_ids": [[0, 0, 0, 0], [0, 0, 0]],
        "length": [4, 3],
        "label": [1, 0],
        "text": ["good film", "bad"],
    }
    assert lengths.tolist() == [4, 3]


def test_a_long_text_is_cut_and_its_whole_length_is_known(tokenizer):
    table, lengths = stage.tokenize(texts(("very " * 50, 1.5), ("very " * 6, 0)), tokenizer, 8)
    assert table["input_ids"].to_pylist() == [[2, *[7] * 6, 3]] * 2
    assert table["label"].to_pylist() == [1.5, 0.0]  # a number to predict stays one
    assert lengths.tolist() == [52, 8]


# The stage


@pytest.fixture
def view(tmp_path, folder, monkeypatch):
    """A function from max_length to what the stage sees, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    rows = {
        "train": [("good film", 1), ("bad film", 0), ("very good", 1), ("very " * 20, 1), ("Good  film", 1), ("", 0)],
        "validation": [("good", 1)],
        "test": [("bad", 0), ("very bad", 0)],
    }
    for split, lines in rows.items():
        pd.DataFrame(lines, columns=["sentence", "label"]).to_csv(f"{split}.csv", index=False)

    def build(max_length=8):
        source = {"kind": "files", "files": {split: f"{split}.csv" for split in rows}}
        label = {"column": "label", "names": ["negative", "positive"]}
        return params.TokenizeView.model_construct(
            data="mine",
            model="tiny",
            tokenize=params.TokenizeParams(max_length=max_length),
            dataset=DatasetRow(source=source, text=["sentence"], label=label, metrics=["accuracy"]),
            base_model=ModelRow.model_validate(
                {"source": {"kind": "hub", "path": folder}, "target_modules": ["query"], "head": ["classifier"]}
            ),
        )

    return build


def test_the_report_counts_rows_lengths_and_what_was_left_out(view):
    with Path("train.csv").open("a") as file:
        file.write("GOOD film,0\nGOOD FILM,1\nvery bad,1\nbad,0\n")
    stage.main(view())
    header, train, *_, missing, margin, duplicate, contradicting = artifacts.TOKENIZE_SPLITS.read_text().splitlines()
    assert header == (
        "part,rows,tokens_p50,tokens_p95,tokens_p99,tokens_max,truncated_share,share_negative,share_positive"
    )
    assert train == "train,4,4,22,22,22,0.25,0.25,0.75"
    assert missing == "left out: missing,1,,,,,,,"
    assert margin == "left out: within margin,0,,,,,,,"
    assert duplicate == "left out: duplicate,5,,,,,,,"
    assert contradicting == "left out: duplicate with another label,2,,,,,,,"
    assert artifacts.TOKENIZE_LENGTHS.read_text().splitlines()[:6] == ["length,rows", "0,0", "1,0", "2,0", "3,0", "4,3"]


def test_two_runs_write_the_same_bytes_and_parts_of_a_split_the_same_rows(view, monkeypatch):
    def written():
        stage.main(view())
        return {path: path.read_bytes() for path in Path().glob("[ar]*/**/*") if path.is_file()}

    def rows():
        with pa.OSFile(str(artifacts.tokens("train"))) as file, pa.ipc.open_stream(file) as reader:
            return reader.read_all()

    first, whole = written(), rows()
    assert len(first) == 6
    assert written() == first
    monkeypatch.setattr(encoding, "WRITTEN", 3)
    stage.main(view())
    assert rows()["label"].num_chunks == 2
    assert rows().equals(whole)


def test_a_length_beyond_the_model_is_refused_with_the_limit(view):
    refused(stage.main, view(max_length=33), says="tokenize.max_length: the model takes at most 32 tokens, got 33")


# What later stages depend on


def test_the_files_of_the_chosen_rows_are_recorded(view, folder):
    chosen = view()
    stage.main(chosen)
    found = json.loads(artifacts.INPUTS.read_text())
    assert found.keys() == {
        "data: mine",
        "model: tiny",
        *(f"{split}.csv" for split in ("train", "validation", "test")),
        *(str(path) for path in Path(folder).iterdir()),
    }
    stage.main(chosen.model_copy(update={"base_model": chosen.base_model.model_copy(update={"head": ("score",)})}))
    changed = json.loads(artifacts.INPUTS.read_text())
    assert {name for name in found if found[name] != changed[name]} == {"model: tiny"}


def test_rows_are_recorded_and_a_missing_file_is_one_line(view):
    row = view().dataset.model_copy(update={"cut": {"validation": 0.1, "test": 0.1}})
    chosen = view().model_copy(update={"dataset": row})
    turned = row.model_copy(update={"cut": dict(reversed(row.cut.items()))})  # DVC writes keys in another order
    assert stage.inputs(chosen.model_copy(update={"dataset": turned})) == stage.inputs(chosen)
    missing = row.model_copy(update={"source": row.source.model_copy(update={"files": {"train": "data/no.csv"}})})
    chosen = chosen.model_copy(update={"dataset": missing})
    refused(stage.inputs, chosen, says="pipeline/datasets.yaml: mine: data/no.csv: not found; paths start at")
