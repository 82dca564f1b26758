"""The commands that ask a trained adapter and score it. That predict says what was scored: stages/test_pairwise.py."""

import io
import json
import math
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy import special
from transformers import AutoTokenizer

from lsr import quantize_adapter
from lsr.__main__ import main as lsr_main
from lsr.tuner.files import WEIGHTS
from pipeline import score
from pipeline.core import artifacts, console
from pipeline.data import files
from pipeline.methods.adapter_task import AdapterTask
from pipeline.predict import __main__ as predict
from pipeline.predict.columns import columns_of
from tests.kit import edit, ended, growth, refused, said, table, write
from tests.workspace import ROOT, read_yaml

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


def ok(*words):
    return said(predict.main, *words)


def mistake(*words):
    """The one line with which the command is refused, after its name."""
    line = refused(predict.main, words)
    assert line.startswith("python -m pipeline.predict: ")
    return line.removeprefix("python -m pipeline.predict: ")


def typed(monkeypatch, content):
    """Let standard input hold these bytes."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_a_long_text_is_cut_as_in_training_and_counted(one, capsys):
    long = " ".join(f"{SENTENCE} {number}" for number in range(20))
    tokenizer = AutoTokenizer.from_pretrained("tiny-roberta")
    kept = tokenizer(long, truncation=True, max_length=24)["input_ids"]  # the max_length of the workspace
    rows = table(ok(long, tokenizer.decode(kept, skip_special_tokens=True)))
    assert rows[0]["p(equivalent)"] == rows[1]["p(equivalent)"]
    predict.main([long, "the cat"])
    assert "1 of 2 texts truncated to 24 tokens\n" in capsys.readouterr().err
    says = "--strict: row 2: the text has more than 24 tokens; at most that are read"
    assert mistake("the cat", long, "--strict") == says
    assert len(table(ok("the cat", "--strict"))) == 1


@pytest.mark.parametrize(("load", "threads", "is_said"), [(7.2, 2, True), (7.2, 1, False), (2.9, 2, False)])
def test_a_busy_machine_is_a_line_that_says_how_to_use_one_thread(load, threads, is_said, one, monkeypatch):
    _, quiet, _ = ended(predict.main, [SENTENCE])
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    status, out, err = ended(predict.main, [SENTENCE])
    assert (status, out) == (None, quiet)
    lines = [line for line in err.splitlines() if "OMP_NUM_THREADS=1" in line]
    assert [f"a load of 7 on 2 cores, where {threads} threads" in line for line in lines] == [True] * is_said


def test_a_bank_of_an_adapter_without_its_task_is_refused_in_one_line(one):
    shutil.copytree(artifacts.ADAPTER, "imported")
    Path("imported/task.json").unlink()
    assert lsr_main(["bank", "--from", "imported", "-o", "bank"]) == 0
    reason = "came into the bank without kind, columns, labels, max_length in its task.json: label names are missing"
    remedy = "write task.json next to its weights and create the bank again, or use: lsr serve bank"
    assert mistake("--adapter", "bank", SENTENCE) == f"bank: imported: {reason}; {remedy}"


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_file_says_what_the_arguments_say(one, ending):
    texts = [SENTENCE, "an owl, at night", "naïve ☃"]
    write(f"in.{ending}", [{"id": key, "sentence1": text} for key, text in zip("abc", texts, strict=True)])
    answers = zip("abc", table(ok(*texts)), strict=True)
    expected = [{"id": key, "sentence1": row.pop("text"), **row} for key, row in answers]
    assert table(ok("--file", f"in.{ending}")) == expected
    assert table(ok("--file", f"in.{ending}", "--column", "sentence1")) == expected


@pytest.mark.parametrize(("encoding", "delimiter"), [("cp1252", ";"), ("utf-16", "\t"), ("utf-8", "|")])
def test_a_file_as_excel_writes_it_is_answered_as_the_arguments_are_and_it_is_said(one, capsys, encoding, delimiter):
    texts = [SENTENCE, "an owl; at night, too", "naïve café"]
    rows = pd.DataFrame([{"id": key, "sentence1": text} for key, text in zip("abc", texts, strict=True)])
    rows.to_csv("in.CSV.gz", index=False, encoding=encoding, sep=delimiter)
    answers = zip("abc", table(ok(*texts)), strict=True)
    expected = [{"id": key, "sentence1": row.pop("text"), **row} for key, row in answers]
    predict.main(["--file", "in.CSV.gz"])
    out, err = capsys.readouterr()
    assert table(out) == expected
    assert "--file: in.CSV.gz: read as " in err
    assert (encoding in err) == (encoding != "utf-8")


def test_an_encoding_or_a_sheet_can_be_named(one):
    rows = [{"sentence1": "źle wcięte drzwi"}, {"sentence1": SENTENCE}]
    expected = [row["p(equivalent)"] for row in table(ok(*(row["sentence1"] for row in rows)))]
    pd.DataFrame(rows).to_csv("in.csv", index=False, encoding="iso8859_2")
    with pd.ExcelWriter("in.xlsx") as book:
        pd.DataFrame([{"about": "texts"}]).to_excel(book, sheet_name="About", index=False)
        pd.DataFrame(rows).to_excel(book, sheet_name="Texts", index=False)
    for words in (("--file", "in.csv", "--encoding", "iso8859_2"), ("--file", "in.xlsx", "--sheet", "Texts")):
        answered = table(ok(*words))
        assert [row["sentence1"] for row in answered] == [row["sentence1"] for row in rows]
        assert [row["p(equivalent)"] for row in answered] == expected


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_key_of_an_object_is_a_column_as_in_training(one, ending):
    edit(TASK, columns=["review.text"])
    texts = [SENTENCE, "an owl, at night"]
    write(f"in.{ending}", [{"id": number, "review": {"text": text, "stars": 3}} for number, text in enumerate(texts)])
    answers = table(ok(*texts))
    expected = [
        {"id": str(number), "review.text": row.pop("text"), "review.stars": "3", **row}
        for number, row in enumerate(answers)
    ]
    assert table(ok("--file", f"in.{ending}")) == expected
    edit(TASK, columns=["sentence1"])
    assert table(ok("--file", f"in.{ending}", "--column", "review.text")) == expected


def test_the_only_column_is_named_as_its_name_may_be_a_text(one, capsys):
    Path("in.txt").write_text(f"an owl\n{SENTENCE}\n")
    predict.main(["--file", "in.txt"])
    out, err = capsys.readouterr()
    assert [row["an owl"] for row in table(out)] == [SENTENCE]
    assert err == "--file: in.txt: the texts are in its only column, which is named 'an owl'\n"
    predict.main(["--file", "in.txt", "--column", "an owl"])
    assert capsys.readouterr() == (out, "")


def test_texts_with_carriage_returns_are_read_again_by_pandas_as_they_were(one):
    texts = [SENTENCE, "an owl\rat night", "a fox\r\nin the wood", "\r a hen"]
    write("in.jsonl", [{"sentence1": text, "number": number, "none": None} for number, text in enumerate(texts)])
    ok("--file", "in.jsonl", "--out", "out.csv")
    found = pd.read_csv("out.csv")
    assert found["sentence1"].tolist() == texts
    assert found["number"].tolist() == list(range(len(texts)))
    assert found["none"].isna().all()
    assert found["p(equivalent)"].between(0, 1).all()


def test_other_columns_are_kept_as_they_are_and_give_way_to_none_of_ours(one):
    records = [{"n": 3, "label": "good", "sentence1": SENTENCE}, {"sentence1": "an owl", "late": [1, None]}]
    write("in.jsonl", records)
    found = [json.loads(line) for line in ok("--file", "in.jsonl", "--json").splitlines()]
    ours = ["predicted_label", "p(not_equivalent)", "p(equivalent)"]
    assert [list(record) for record in found] == [["n", "label", "sentence1", "late", *ours]] * 2
    assert (found[0]["n"], found[0]["label"]) == (3, "good")
    assert (found[1]["n"], found[1]["late"]) == (None, [1, None])


def test_numbers_and_dates_of_other_columns_are_the_same_in_json_as_in_csv(one):
    values = {"small": 1e-12, "long": 0.12345678901234566, "large": 10**20, "nested": [1e-12, None]}
    write("in.jsonl", [{"sentence1": SENTENCE, **values}])
    (found,) = map(json.loads, ok("--file", "in.jsonl", "--json").splitlines())
    assert {name: found[name] for name in values} == values
    day = pd.Timestamp("2024-01-31")
    values = {"sentence1": [SENTENCE], "day": [day], "bytes": [b"\xff"], "none": [math.nan], "list": [[1.5, math.nan]]}
    pd.DataFrame(values).to_parquet("in.parquet")
    (found,) = map(json.loads, ok("--file", "in.parquet", "--json").splitlines())
    (row,) = table(ok("--file", "in.parquet"))
    assert (found["day"], found["bytes"]) == (row["day"], row["bytes"]) == (str(day), str(b"\xff"))
    assert (found["none"], found["list"]) == (None, [1.5, None])


def test_each_table_is_answered_before_the_next_is_read_and_a_later_mistake_is_a_line(one, monkeypatch):
    monkeypatch.setattr(files, "ROWS", 1)
    first = {"sentence1": SENTENCE, "label": "good"}
    for second, says in (
        ({"sentence1": "an owl", "late": 1}, "row 2: a new key 'late'; add it to row 1"),
        ({"sentence1": None}, "row 2: is empty; needed: a text"),
        ("no object", "line 2 must be a JSON object, got str"),
    ):
        write("in.jsonl", [first, second])
        status, out, err = ended(predict.main, ["--file", "in.jsonl", "--json"])
        assert (status, len(out.splitlines()), err.count("\n")) == (2, 1, 1)
        assert err.startswith(f"python -m pipeline.predict: --file: in.jsonl: {says}")
        assert says in mistake("--file", "in.jsonl", "--out", "out.csv")
        assert not Path("out.csv").exists()
    write("in.jsonl", [first, {"sentence1": "an owl", "late": None}])
    assert [row["label"] for row in table(ok("--file", "in.jsonl"))] == ["good", ""]


def test_a_file_is_answered_some_rows_at_a_time_and_never_all_in_memory(one, monkeypatch):
    monkeypatch.setattr(files, "ROWS", 50)
    assert growth(lambda path: ok("--file", str(path), "--column", "text", "--out", f"{path}.jsonl"), "csv") < 0.2


def test_rows_without_a_text_are_left_out_and_counted(one, capsys):
    Path("in.csv").write_text(f"id,text\n1,\n2,{SENTENCE}\n3, \n")
    words = ["--file", "in.csv", "--column", "text"]
    assert mistake(*words) == "--file: in.csv: row 1: is empty; needed: a text, or --skip-empty"
    predict.main([*words, "--skip-empty"])
    printed = capsys.readouterr()
    assert [row["id"] for row in table(printed.out)] == ["2"]
    assert printed.err == "rows without text skipped: 2 of 3\n"


def test_standard_input_holds_one_text_a_line(one, monkeypatch):
    typed(monkeypatch, f"{SENTENCE}\r\nan owl\n".encode())
    assert ok("-") == ok(SENTENCE, "an owl")
    typed(monkeypatch, f"{SENTENCE}\nan owl\n".encode("utf-8-sig"))  # as programs of Windows write it
    assert ok("-") == ok(SENTENCE, "an owl")
    for content, message in (
        (b"", "standard input: empty; needed: at least one row"),
        (b"a\xff\n", "standard input: 'utf-8' codec can't decode byte 0xff in position 1: invalid start byte"),
    ):
        typed(monkeypatch, content)
        assert mistake() == message


def test_pairs_are_two_arguments_a_line_with_a_tab_or_two_columns(pairs, monkeypatch):
    expected = ok(SENTENCE, "an owl", "a fox", "a hen")
    assert [(row["text"], row["text_pair"]) for row in table(expected)] == [(SENTENCE, "an owl"), ("a fox", "a hen")]
    typed(monkeypatch, f"{SENTENCE}\tan owl\na fox\ta hen\n".encode())
    assert ok() == expected
    Path("in.csv").write_text(f"text_pair,text,sentence2,sentence1\nan owl,{SENTENCE},an owl,{SENTENCE}\n")
    for words in ((), ("--column", "text", "text_pair")):
        (found,) = table(ok("--file", "in.csv", *words))
        assert {name: found[name] for name in table(expected)[0]} == table(expected)[0]


def test_a_file_is_written_by_its_extension(one):
    printed = ok(SENTENCE), ok(SENTENCE, "--json")
    for name in ("new/out.csv", "out.jsonl"):
        assert ok(SENTENCE, "--out", name) == ""
    assert (Path("new/out.csv").read_text(), Path("out.jsonl").read_text()) == printed
    words = (SENTENCE, "--out", "out.jsonl")
    assert mistake(*words) == "--out: out.jsonl: exists; choose another file, or replace it with --force"
    ok(*words, "--force")


MISTAKES = read_yaml(ROOT / "tests/pipeline/predict/mistakes.yaml")


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_mistake_is_one_line(one, capsys, words, message):
    write("in.csv", "id,text\n1,a cat\n")
    write("empty.csv", "id,text\n")
    write("numbers.jsonl", [{"sentence1": 3}])
    write("half.jsonl", [{"sentence1": "\ud800"}])
    write("deep.jsonl", "[" * 100_000)
    os.mkfifo("pipe.csv")
    Path("folder.csv").mkdir()
    assert mistake(*words).startswith(message)


def test_an_answer_that_is_not_finite_is_an_error_and_no_answer(pairs):
    its = load_file(artifacts.ADAPTER / WEIGHTS)
    heads = {name: torch.full_like(value, 3e38) for name, value in its.items() if "classifier" in name}
    edit(artifacts.ADAPTER / WEIGHTS, **heads)
    write("in.csv", f"text,text_pair\n,\n{SENTENCE},an owl\n")
    of_file = ["--file", "in.csv", "--column", "text", "text_pair", "--skip-empty"]
    for command, words, row in (
        (predict.main, [SENTENCE] * 2, 1),
        (predict.main, of_file, 2),
        (score.main, ["glue", str(artifacts.ADAPTER)], 1),
    ):
        status, out, err = ended(command, words)
        assert (status, out) == (1, ""), err
        says = f"row {row}: the answer is not finite: the weights of artifacts/adapter overflow"
        assert err.splitlines()[-1].endswith(says)


def test_a_label_does_not_command_the_terminal():
    printed = ended(console.table, "no\x1b[2J", ["p(\x9b)", "label"], [[0.5, "\x1b[31mno"]])[1]
    assert printed == "no\\x1b[2J: p(\\x9b) | label\n  0.5 | \\x1b[31mno\n"


def test_it_scores_as_the_stage_does_and_a_rounded_adapter_beside_it(after):
    folder = after()
    quantize_adapter(artifacts.ADAPTER, folder / "rounded", "8bit")
    _, trained, rounded = said(score.main, "glue", str(artifacts.ADAPTER), str(folder / "rounded")).splitlines()
    metrics = artifacts.read_metrics(artifacts.EVALUATE_METRICS)
    expected = [f"{metrics[name]:.4f}" for name in ("accuracy", "f1")]
    low, high = (f"{metrics[f'accuracy_{end}']:.4f}" for end in ("low", "high"))
    name, size, *scores, interval, examples = trained.strip().split(" | ")
    assert (name, scores, interval) == (str(artifacts.ADAPTER), expected, f"{low} to {high}")
    assert (size, examples) == (f"{metrics['adapter_bytes']:,}", str(metrics["examples"]))
    assert int(rounded.split(" | ")[1].replace(",", "")) < metrics["adapter_bytes"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ratings", str(artifacts.ADAPTER)], "predicts not_equivalent equivalent of sentence1 and sentence2, but "),
        (["glu", str(artifacts.ADAPTER)], "did you mean glue?"),
    ],
)
def test_what_cannot_be_scored_is_one_line(after, words, message):
    after()
    assert refused(score.main, words, says=message).startswith("python -m pipeline.score: ")


def test_the_score_of_tenants_on_other_data_is_refused_in_words(after):
    after()
    edit(TASK, labels=None, tenant="shop", tenants={"a": ["bad", "good"], "b": ["off", "on"]})
    says = "predicts the labels of 2 tenants of sentence1 and sentence2, but "
    refused(score.main, ["ratings", str(artifacts.ADAPTER)], says=says)


def test_answers_below_a_probability_are_empty_and_counted(one):
    texts = [f"{SENTENCE} {number}" for number in range(12)]
    plain = table(ok(*texts))
    highest = [max(float(row["p(equivalent)"]), float(row["p(not_equivalent)"])) for row in plain]
    least = sorted(highest)[6]
    status, out, err = ended(predict.main, [*texts, "--min-probability", str(least), "--batch-size", "5"])
    assert status is None
    expected = [
        row | {"label": row["label"] if share >= least else ""} for row, share in zip(plain, highest, strict=True)
    ]
    assert table(out) == expected
    count = sum(share < least for share in highest)
    assert 0 < count < 12
    assert f"{count} of 12 texts without an answer: its probability is below {least:g}\n" in err
    assert table(ok(*texts, "--min-probability", "0")) == plain


def test_only_a_single_label_can_be_left_out(one):
    for value in ("1.1", "nan"):
        says = f"argument --min-probability: must be from 0 to 1, got {value}"
        assert mistake("a", "--min-probability", value).startswith(says)
    edit(TASK, kind="multi_label", thresholds=[0.5, 0.5])
    says = "--min-probability: needs an adapter that answers with one label, got one of the kind multi_label"
    assert mistake("a", "--min-probability", "0.6") == says


def test_of_tenants_p_is_the_probability_of_the_answer_though_the_threshold_chose_the_less_probable():
    shop = AdapterTask(kind="classes", columns=("text",), labels=("dog", "cat"), threshold=0.3, max_length=24)
    tags = AdapterTask(kind="multi_label", columns=("text",), labels=("x", "y"), thresholds=(0.2, 0.9), max_length=24)
    outputs = np.array([[0.0, -0.5], [0.0, -2.0], [0.0, 2.0], [-1.0, 1.0], [2.0, 3.0], [-2.0, -3.0]])
    found = columns_of(outputs, {"tenant": [0, 0, 0, 1, 1, 1]}, shop, [shop, tags])
    assert found["label"] == ["cat", "dog", "cat", "x", "x; y", ""]
    of_two = special.softmax(outputs[:3], axis=1)[[0, 1, 2], [1, 0, 1]]
    of_labels = special.expit([-1.0, 3.0, -2.0])  # of no label or several, the largest
    assert found["p"] == pytest.approx([*of_two, *of_labels], abs=1e-5)
