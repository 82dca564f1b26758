"""The command that asks a trained adapter: what it says, and one line with exit code 2 for each mistake."""

import csv
import io
import json
import sys
from pathlib import Path

import pandas as pd
import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pipeline.core import artifacts
from pipeline.methods.adapter_task import AdapterTask
from pipeline.predict import __main__ as predict

SENTENCE = "the cat number 3 sleeps in the barn"
TASK = artifacts.ADAPTER / "task.json"


@pytest.fixture
def pairs(after):
    """A folder with an adapter of pairs."""
    return after()


@pytest.fixture
def one(pairs):
    """A folder with the same adapter, as one of single texts."""
    edit(TASK, columns=["sentence1"])
    return pairs


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def ok(capsys, *words):
    """Run a command that should work; return what it prints."""
    capsys.readouterr()
    predict.main(words)
    return capsys.readouterr().out


def mistake(capsys, *words):
    """Run a command that should be refused; return its one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        predict.main(words)
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("python -m pipeline.predict: ")
    return line.removeprefix("python -m pipeline.predict: ")


def typed(monkeypatch, content):
    """Let standard input hold these bytes."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def table(text):
    return list(csv.DictReader(io.StringIO(text)))


# What it says


@pytest.mark.parametrize("adapter", ["lsr", "lora"])
def test_it_says_what_the_pipeline_scored(after, capsys, adapter):
    after(adapter)
    scored = list(csv.DictReader(artifacts.EVALUATE_PREDICTIONS.open(newline="")))
    asked = table(ok(capsys, "--file", str(artifacts.EVALUATE_PREDICTIONS), "--column", "text", "text_pair"))
    assert [(row["text"], row["text_pair"], row["label"]) for row in asked] == [
        (row["text"], row["text_pair"], row["predicted"]) for row in scored
    ]
    for row, expected in zip(asked, scored, strict=True):
        assert float(row[f"p({row['label']})"]) == pytest.approx(float(expected["confidence"]), abs=0.0051)
        assert float(row["p(not_equivalent)"]) + float(row["p(equivalent)"]) == pytest.approx(1, abs=2e-6)


def test_a_regression_says_a_number(one, capsys):
    base = AutoModelForSequenceClassification.from_pretrained("tiny-roberta", num_labels=1)
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False)
    model = get_peft_model(base, config).eval()
    model.save_pretrained("ratings")
    AdapterTask(kind="number", columns=("sentence1",), labels=None, max_length=24).write(Path("ratings"))
    number = model(**AutoTokenizer.from_pretrained("tiny-roberta")(SENTENCE, return_tensors="pt")).logits.item()
    (asked,) = table(ok(capsys, SENTENCE, "--adapter", "ratings"))
    assert asked.keys() == {"text", "number"}
    assert float(asked["number"]) == pytest.approx(number, rel=1e-5)


def test_a_long_text_is_cut_as_in_training_and_counted(one, capsys):
    long = " ".join(f"{SENTENCE} {number}" for number in range(20))
    tokenizer = AutoTokenizer.from_pretrained("tiny-roberta")
    kept = tokenizer(long, truncation=True, max_length=24)["input_ids"]  # the max_length of the workspace
    rows = table(ok(capsys, long, tokenizer.decode(kept, skip_special_tokens=True)))
    assert rows[0]["p(equivalent)"] == rows[1]["p(equivalent)"]
    predict.main([long, "the cat"])
    assert "1 of 2 texts truncated to 24 tokens\n" in capsys.readouterr().err


# Where texts come from


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_file_says_what_the_arguments_say(one, capsys, ending):
    texts = [SENTENCE, "an owl, at night", "naïve ☃"]
    frame = pd.DataFrame({"id": ["a", "b", "c"], "sentence1": texts})
    write = {"csv": lambda path: frame.to_csv(path, index=False), "parquet": frame.to_parquet}
    write[ending](f"in.{ending}")
    expected = [
        {"id": key, "sentence1": row.pop("text"), **row}
        for key, row in zip("abc", table(ok(capsys, *texts)), strict=True)
    ]
    assert table(ok(capsys, "--file", f"in.{ending}")) == expected
    assert table(ok(capsys, "--file", f"in.{ending}", "--column", "sentence1")) == expected


def test_other_columns_are_kept_as_they_are_and_give_way_to_none_of_ours(one, capsys):
    records = [{"n": 3, "label": "good", "sentence1": SENTENCE}, {"sentence1": "an owl", "late": [1, None]}]
    Path("in.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    found = [json.loads(line) for line in ok(capsys, "--file", "in.jsonl", "--json").splitlines()]
    ours = ["predicted_label", "p(not_equivalent)", "p(equivalent)"]
    assert [list(record) for record in found] == [["n", "label", "sentence1", "late", *ours]] * 2
    assert (found[0]["n"], found[0]["label"]) == (3, "good")
    assert (found[1]["n"], found[1]["late"]) == (None, [1, None])


def test_rows_without_a_text_are_left_out_and_named(one, capsys):
    Path("in.csv").write_text(f"id,text\n1,\n2,{SENTENCE}\n3, \n")
    words = ["--file", "in.csv", "--column", "text"]
    assert mistake(capsys, *words) == "row 1: is empty; needed: a text, or --skip-empty"
    predict.main([*words, "--skip-empty"])
    printed = capsys.readouterr()
    assert [row["id"] for row in table(printed.out)] == ["2"]
    assert printed.err == "rows without text skipped: 2 of 3: 1, 3\n"


def test_standard_input_holds_one_text_a_line(one, capsys, monkeypatch):
    typed(monkeypatch, f"{SENTENCE}\r\nan owl\n".encode())
    assert ok(capsys, "-") == ok(capsys, SENTENCE, "an owl")
    for content, message in (
        (b"", "standard input: empty; needed: one text per line"),
        (b"a\xff\n", "standard input: 'utf-8' codec can't decode byte 0xff in position 1: invalid start byte"),
    ):
        typed(monkeypatch, content)
        assert mistake(capsys) == message


def test_pairs_are_two_arguments_a_line_with_a_tab_or_two_columns(pairs, capsys, monkeypatch):
    expected = ok(capsys, SENTENCE, "an owl", "a fox", "a hen")
    assert [(row["text"], row["text_pair"]) for row in table(expected)] == [(SENTENCE, "an owl"), ("a fox", "a hen")]
    typed(monkeypatch, f"{SENTENCE}\tan owl\na fox\ta hen\n".encode())
    assert ok(capsys) == expected
    Path("in.csv").write_text(f"text_pair,text,sentence2,sentence1\nan owl,{SENTENCE},an owl,{SENTENCE}\n")
    for words in ((), ("--column", "text", "text_pair")):
        (found,) = table(ok(capsys, "--file", "in.csv", *words))
        assert {name: found[name] for name in table(expected)[0]} == table(expected)[0]


def test_the_named_base_may_be_elsewhere(one, capsys):
    expected = ok(capsys, SENTENCE)
    Path("tiny-roberta").rename("moved")
    assert "base model tiny-roberta: cannot be loaded" in mistake(capsys, SENTENCE)
    assert ok(capsys, SENTENCE, "--base", "moved") == expected


# Where it goes


def test_a_file_is_written_by_its_extension(one, capsys):
    printed = ok(capsys, SENTENCE), ok(capsys, SENTENCE, "--json")
    for name in ("new/out.csv", "out.jsonl", "out.parquet"):
        assert ok(capsys, SENTENCE, "--out", name) == ""
    assert (Path("new/out.csv").read_text(), Path("out.jsonl").read_text()) == printed
    (row,) = pd.read_parquet("out.parquet").to_dict("records")
    assert row == json.loads(printed[1])
    words = (SENTENCE, "--out", "out.jsonl")
    assert mistake(capsys, *words) == "--out: out.jsonl: exists; choose another file, or replace it with --force"
    ok(capsys, *words, "--force")


# Mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--batch-size", "0"), "argument --batch-size: must be from 1 to 1,000,000, got 0; see"),
        (("a", "--adapter", "nowhere"), "nowhere: no such folder"),
        (("a", "--file", "in.csv"), "--file: texts are taken from the file or from the arguments, got both"),
        (("a", "--column", "x"), "--column: names columns of --file, and there is none"),
        (("--file", "nowhere.csv"), "--file: nowhere.csv: not found; paths start at the current folder"),
        (("--file", "in.csv"), "--file: in.csv, --column: no column 'sentence1'; columns: id, text"),
        (("--file", "in.csv", "--column", "txet"), "--file: in.csv, --column: no column 'txet'; did you mean text?; c"),
        (("--file", "in.csv", "--column", "id", "text"), "--column: the adapter reads 1 column, got id text"),
        (("--file", "empty.csv", "--column", "text"), "--file: empty.csv: empty; needed: at least one row"),
        (("--file", "numbers.jsonl"), "row 1: a text must be text, got 3"),
        (("--file", "half.jsonl"), "row 1: a text must be text, got '\\ud800'"),
        (("--file", "mixed.jsonl", "--out", "o.parquet"), "o.parquet: parquet does not take this table: "),
        (("a", " "), "row 2: is empty; needed: a text, or --skip-empty"),
        (("a", "--out", "out.txt"), "--out: out.txt: the extension must be one of .csv, .jsonl, .parquet"),
        (("a", "--out", "folder.csv", "--force"), "--out: folder.csv: exists; choose another file"),
        (("a", "--base", "./nowhere"), "base model ./nowhere: no such folder"),
    ],
)
def test_a_mistake_is_one_line(one, capsys, words, message):
    Path("in.csv").write_text("id,text\n1,a cat\n")
    Path("empty.csv").write_text("id,text\n")
    Path("numbers.jsonl").write_text('{"sentence1": 3}\n')
    Path("half.jsonl").write_text('{"sentence1": "\\ud800"}\n')
    Path("mixed.jsonl").write_text('{"sentence1": "a", "id": 1}\n{"sentence1": "b", "id": "a"}\n')
    Path("folder.csv").mkdir()
    assert mistake(capsys, *words).startswith(message)
