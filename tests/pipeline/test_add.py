"""A file of one's own gets a row: what is decided from its columns, what is refused, and that other rows stay."""

import gzip
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import unicodedata
from pathlib import Path

import dvc.cli
import pandas as pd
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from pipeline import params
from pipeline.add.__main__ import main
from pipeline.data import datasets
from tests.kit import refused, said, write
from tests.pipeline.data.rows import frames
from tests.workspace import ROOT, copy_committed, read_yaml

QUEUES = ["billing", "other", "technical"]
OWN = Path("data/datasets.yaml")
ROWS = range(120)


def text(number):
    return f"The printer of room {number} prints page {number % 7} twice"


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    """The tables, and files of a user, as the working directory."""
    monkeypatch.chdir(tmp_path)
    copy_committed()
    tickets = [{"id": row, "body": text(row), "queue": QUEUES[row % 3]} for row in ROWS]
    write("data/tickets.csv", tickets)
    write("data/two.csv", [ticket | {"team": ticket["id"] % 4} for ticket in tickets])
    write("data/bare.csv", "".join(f"{ticket['body']},{ticket['queue']}\n" for ticket in tickets))
    pairs = [{"question": text(row), "answer": text(ROWS[-1 - row]), "label": row % 2} for row in ROWS]
    write("data/pairs.tsv", pairs)
    write("data/ratings.jsonl", [{"review": text(row), "stars": row / 30, "spam": row % 2 == 0} for row in ROWS])
    asked = [{"prompt": f"Where is {row}?", "completion": text(row)} for row in ROWS]
    write("data/asked.jsonl", asked)
    write("data/talks.jsonl", [{"messages": talk(*row.values()), "prompt": "no"} for row in asked])
    tags = [["paper", "slow"], ["slow"], [], ["paper"], ["ink", "slow"]]
    write("data/tags.jsonl", [{"text": text(row), "tags": tags[row % 5], "n": row % 3} for row in ROWS])
    joined = [{"text": text(row), "queue": row % 3, "About": "| ".join(tags[row % 5])} for row in ROWS]
    write("data/joined.tsv", joined)
    commas = ["Home, kitchen", "Home, garden", "Toys, games", "Sport"]
    write("data/commas.csv", [{"text": text(row), "area": commas[row % 4]} for row in ROWS])
    write("data/stars.parquet", [{"text": text(row), "n": row % 5 + 1} for row in ROWS])


def talk(*contents):
    return [{"role": role, "content": one} for role, one in zip(("user", "assistant"), contents, strict=True)]


def two(first, second):
    return {"names": [first, second], "positive": second}


WRITTEN = ["exact_match", "rouge_l"]
SEVERAL = ["macro_f1", "micro_f1"]
TAGS = ["ink", "paper", "slow"]
COMMAS = ["Home, garden", "Home, kitchen", "Sport", "Toys, games"]
ABOUT = ["data/joined.tsv", "--label", "About"]
SPAM = ["data/ratings.jsonl", "--label", "spam"]
DECIDED = [
    (["data/tickets.csv"], ["body"], {"column": "queue", "names": QUEUES}, ["macro_f1", "accuracy"]),
    (["data/pairs.tsv"], ["question", "answer"], {"column": "label", **two("0", "1")}, ["accuracy", "f1"]),
    (["data/ratings.jsonl"], ["review"], {"column": "stars", "low": 0, "high": 119 / 30}, ["pearson", "spearman"]),
    (SPAM, ["review"], {"column": "spam", **two("false", "true")}, ["accuracy", "f1"]),
    (["data/asked.jsonl"], ["prompt"], {"completion": "completion"}, WRITTEN),
    (["data/talks.jsonl"], None, {"messages": "messages"}, WRITTEN),
    (["data/tags.jsonl"], ["text"], {"multi_label": "tags", "names": TAGS}, SEVERAL),
    (ABOUT, ["text"], {"multi_label": "About", "separator": "|", "names": TAGS}, SEVERAL),
    (["data/commas.csv"], ["text"], {"column": "area", "names": COMMAS}, ["macro_f1", "accuracy"]),
    (["data/stars.parquet"], ["text"], {"column": "n", "names": list("12345")}, ["macro_f1", "accuracy"]),
]  # fmt: skip


@pytest.mark.parametrize(("words", "text", "label", "metrics"), DECIDED)
def test_the_columns_say_what_is_text_and_what_kind_of_label_there_is(words, text, label, metrics):
    shown = said(main, *words)
    ((name, row),) = read_yaml(OWN).items()
    assert row["source"] == {"kind": "files", "files": {"train": words[0]}}
    assert (row.get("text"), row["label"], row["metrics"]) == (text, label, metrics)
    assert row["split"] == {"validation": 0.1, "test": 0.2}
    assert row.get("stratify", False) == (
        "column" in label and len(label.get("names", "")) > 2
    )  # 40 and 24 rows of a class are few
    assert params.load_entry("data", name).where == "data/datasets.yaml"
    assert f"data/datasets.yaml: added {name}: 120 rows of {words[0]}\n" in shown
    more = "model=smollm2" if metrics == WRITTEN else "train.extend_epochs=auto"
    assert f"\nTo train: dvc exp run -S data={name} -S {more}\n" in shown


def test_what_was_decided_is_said():
    assert said(main, "data/tickets.csv", "--name", "mine").splitlines()[:5] == [
        "data/datasets.yaml: added mine: 120 rows of data/tickets.csv",
        "  text    body",
        "  label   queue, 3 classes: billing 40, other 40, technical 40",
        "  scores  macro_f1, accuracy",
        "  splits  train 84, validation 12, test 24, by a hash of the text",
    ]


def test_a_rare_class_is_noticed_and_scored_by_what_sees_it():
    write("data/rare.csv", [{"text": text(row), "label": "good" if row % 20 else "bad"} for row in range(2000)])
    shown = said(main, "data/rare.csv")
    assert "\n  scores  macro_f1, f1 of bad, accuracy\n" in shown
    assert read_yaml(OWN)["rare"]["label"]["positive"] == "bad"
    assert re.search(r"\n  rare    bad \d\d \(\d\.\d%\): macro_f1 sees them, and train.class_weights: balanced ", shown)
    assert read_yaml(OWN)["rare"].get("stratify") is None  # 100 rows are enough for a random cut


def test_classes_are_rare_where_they_have_less_than_half_of_an_even_share():
    labels = ["good"] * 29 + ["bad"] * 31
    write("data/even.csv", [{"text": text(row), "label": label} for row, label in enumerate(labels)])
    assert "\n  rare " not in said(main, "data/even.csv")
    write("data/many.csv", [{"text": text(row), "label": f"l{row % 20}"} for row in range(2000)])
    assert "\n  rare " not in said(main, "data/many.csv")


def test_classes_that_a_split_lacks_are_said():
    for split, names in {"first": ["a", "b", "c"], "second": ["a", "b"], "third": ["a"]}.items():
        rows = [{"text": f"{split} {text(row)}", "label": names[row % len(names)]} for row in range(60)]
        write(f"data/{split}.csv", rows)
    shown = said(main, "data/first.csv", "--validation", "data/second.csv", "--test", "data/third.csv")
    assert "\n  absent  validation has no c; test has no b, c: no score of it sees them\n" in shown


def test_comments_and_other_rows_stay_as_they_are():
    before = """# mine
first: # yes
    source: {kind: files, files: {train: data/stars.parquet}}
    text: [text]
    label: {column: n, low: 1, high: 5}
    metrics: [pearson]
    split: {test: 0.2,
      validation: 0.1}
"""
    OWN.write_text(before)
    main(["data/tickets.csv"])
    assert OWN.read_text().startswith(f"{before}tickets:\n  source:\n")
    assert list(read_yaml(OWN)) == ["first", "tickets"]
    OWN.write_text("{}")
    refused(main, ["data/tickets.csv"], says="data/datasets.yaml: cannot append an entry; ")
    assert OWN.read_text() == "{}"


def test_empty_columns_without_a_name_as_excel_writes_them_are_none(tmp_path):
    rows = [f"{text(row)},{QUEUES[row % 3]},,\n" for row in ROWS]
    Path("data/wide.csv").write_text("body,queue,,\n" + "".join(rows))
    read = pd.read_csv("data/wide.csv").dropna(axis="columns", how="all")
    main(["data/wide.csv"])
    entry = read_yaml(OWN)["wide"]
    assert [*entry["text"], entry["label"]["column"]] == list(read.columns)
    examples = frames(datasets.load(params.load_entry("data", "wide"), "wide"))
    assert sum(map(len, examples.values())) == len(read)


def test_a_name_that_yaml_cannot_hold_is_refused_and_nothing_is_written():
    write("data/lines.csv", [{"text": text(row), "label": ("go\x85od", "bad")[row % 2]} for row in ROWS])
    refused(main, ["data/lines.csv"], says="data/datasets.yaml: a name has characters that YAML cannot hold; change it")
    assert not OWN.exists()


MISTAKES = read_yaml(ROOT / "tests/pipeline/mistakes.yaml")


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(words, message):
    with pd.ExcelWriter("data/sheets.xlsx") as book:
        pd.DataFrame([{"about": text(1)}]).to_excel(book, sheet_name="About", index=False)
        pd.DataFrame([{"text": text(1), "label": 1}]).to_excel(book, sheet_name="Rows", index=False)
    write("data/within.json", json.dumps({"data": [{"text": text(row), "label": row % 2} for row in ROWS]}))
    write("data/returns.csv", "text,label\ra,b\rc,d\r")
    write("data/narrow.csv", "text,label\na,b\nc\n")
    write("data/same.csv", [{"text": text(row), "label": "a"} for row in ROWS])
    write("data/named.csv", [{"id": row, "Body": text(row), "Queue": QUEUES[row % 3]} for row in ROWS])
    for name, content in {
        "no.xls": b"",
        "empty.csv": b"",
        "blank.csv.gz": gzip.compress(b"\n \n"),
        "none.json": b"[]",
        "header.csv": b"text,label\n",
        "\u30c7\u30fc\u30bf.csv": b"text,label\n",
    }.items():
        Path("data", name).write_bytes(content)
    write("data/texts.csv", [{"id": row, "sentence": text(row), "other": f"a{row}"} for row in ROWS])
    write("data/comma.csv", [{"sentence": text(row), "price": f"{row},5"} for row in ROWS])
    lines = "".join(f"{text(row)},{QUEUES[row % 3]}\n" for row in ROWS)
    write("data/excel.csv", f"sep=;\nbody,queue\n{lines}".replace(",", ";"))
    write("data/titled.csv", f"Tickets,\nbody,queue\n{lines}")
    write("data/deep.jsonl", "[" * 100_000)
    os.mkfifo("data/pipe.csv")
    refused(main, words, says=message)
    assert not OWN.exists()


def loaded(name):
    """The examples of all splits of a row, with texts and labels by name."""
    row = params.load_entry("data", name)
    data = datasets.load(row, name)
    table = pd.concat(frames(data).values())
    return dict(zip(table["text"], table["label"].map(dict(enumerate(data.task.head.names))), strict=True))


WRITTEN_IN_WAYS = ["email", "EMAIL", "Email ", "email", "phone  call", "phone call", "phone call", "N/A", "nan", ""]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_labels_that_differ_in_case_or_space_are_merged_and_words_for_none_are_missing_and_it_is_said(ending):
    rows = [{"text": text(row), "label": WRITTEN_IN_WAYS[row % 10]} for row in ROWS]
    shown = said(main, str(write(f"data/ways.{ending}", rows)))
    table = pd.DataFrame(rows)
    table["label"] = table["label"].str.strip().str.casefold().str.replace(r"\s+", " ", regex=True)
    expected = table[~table["label"].isin(["n/a", "nan", ""])]
    assert loaded("ways") == dict(zip(expected["text"], expected["label"], strict=True))
    merged = "EMAIL as email (12 rows), Email as email (12 rows), phone  call as phone call (12 rows)"
    assert f"\n  merged  {merged}; --keep-labels leaves them as they are\n" in shown
    assert "\n  missing N/A (12 rows), nan (12 rows), taken for no label; --keep-labels makes classes" in shown
    assert "\n  spaces  around 12 labels are left out\n" in shown
    assert "; 36 rows left out: no text or label, or " in shown


def test_labels_that_differ_in_the_form_of_an_accent_are_merged():
    forms = ["bestätigt", unicodedata.normalize("NFD", "bestätigt"), "bestätigt", "offen"]
    write("data/forms.csv", [{"text": text(row), "label": forms[row % 4]} for row in ROWS])
    said(main, "data/forms.csv")
    table = pd.read_csv("data/forms.csv")
    assert table["label"].nunique() == 3
    assert loaded("forms") == dict(zip(table["text"], table["label"].str.normalize("NFC"), strict=True))


def test_labels_of_a_multi_label_column_that_differ_in_case_are_named_and_stay_apart():
    cells = ["paper;ink", "Paper;ink", "paper;slow", "slow"]
    write("data/cells.csv", [{"text": text(row), "tags": cells[row % 4]} for row in ROWS])
    shown = said(main, "data/cells.csv")
    table = pd.read_csv("data/cells.csv")
    names = table["tags"].str.split(";").explode().unique()
    assert read_yaml(OWN)["cells"]["label"]["names"] == sorted(names)
    assert "\n  apart   Paper and paper are different labels; write them in one way to merge them\n" in shown


def test_labels_that_differ_are_kept_where_the_user_says_so():
    write("data/ways.csv", [{"text": text(row), "label": WRITTEN_IN_WAYS[row % 10]} for row in ROWS])
    shown = said(main, "data/ways.csv", "--keep-labels")
    table = pd.read_csv("data/ways.csv", dtype=str, keep_default_na=False)
    expected = table[table["label"] != ""]
    assert loaded("ways") == dict(zip(expected["text"], expected["label"].str.strip(), strict=True))
    assert "\n  spaces  around 12 labels are left out\n" in shown
    assert "merged" not in shown
    assert "missing" not in shown


def test_a_row_without_a_label_is_left_out_though_none_is_the_name_of_a_class():
    labels = ["none", "none", "bug", "None", None]
    rows = [{"text": text(row), "label": labels[row % 5]} for row in ROWS]
    write("data/bugs.jsonl", rows)
    assert "merged  None as none (24 rows)" in said(main, "data/bugs.jsonl")
    assert loaded("bugs") == {row["text"]: row["label"].lower() for row in rows if row["label"]}


def test_lists_of_one_label_each_are_labels():
    write("data/lists.jsonl", [{"text": text(row), "label": [QUEUES[row % 3]]} for row in ROWS])
    said(main, "data/lists.jsonl")
    assert read_yaml(OWN)["lists"]["label"] == {"multi_label": "label", "names": QUEUES}


@pytest.mark.parametrize("ending", ["json", "jsonl", "parquet"])
def test_a_chosen_column_of_lists_is_multi_label_though_it_has_many_labels_or_nulls(ending):
    many = [f"l{row % 40:02}" for row in ROWS]
    cells = [[many[row]] if row % 3 else [None] for row in ROWS]
    path = write(f"data/lists.{ending}", [{"text": text(row), "of": cells[row]} for row in ROWS])
    write("data/held.jsonl", [{"text": f"held {text(row)}", "of": ["l01", "l02"]} for row in range(9)])
    said(main, str(path), "--label", "of", "--validation", "data/held.jsonl", "--test", "data/held.jsonl")
    expected = sorted({many[row] for row in ROWS if row % 3})
    assert read_yaml(OWN)["lists"]["label"] == {"multi_label": "of", "names": expected}
    train = frames(datasets.load(params.load_entry("data", "lists"), "lists"))["train"]
    applying = dict(zip(train["text"], map(sum, train["label"]), strict=True))
    assert applying == {text(row): min(row % 3, 1) for row in ROWS}


def test_a_column_of_lists_with_many_labels_is_found_whatever_it_is_called():
    many = [[f"l{row % 40:02}"] for row in ROWS]
    rows = [{"id": row, "text": text(row), "of": [*many[row], None]} for row in ROWS]
    write("data/lists.jsonl", rows)
    said(main, "data/lists.jsonl")
    assert read_yaml(OWN)["lists"]["label"] == {"multi_label": "of", "names": sorted({name for (name,) in many})}
    write("data/sizes.jsonl", [{**row, "size": row["id"] / 7} for row in rows])
    refused(main, ["data/sizes.jsonl"], says="which column is to be predicted? --label size or of")
    write("data/vectors.jsonl", [{**row, "of": [row["id"] / 7, 1.5]} for row in rows])
    refused(main, ["data/vectors.jsonl"], says="no column could be a label")


NO_LISTS = {
    "one": ([["toxic"], []], "has lists with 1 label in 120 rows; needed: 2 to 100, or a class in each cell"),
    "mixed": ([["ink"], ["slow"], "paper"], "has lists of labels, but also 'paper'; needed: a list in each cell"),
    "quoted": (["['ink', 'slow']", "['ink']", "[]"], "has lists written as text, such as ['ink', 'slow']; needed"),
    "json": (['["ink", "a long label of five words", "slow"]', "[]"], "has lists written as text, such as ["),
    "numbers": (["[0, 3]", "[1]", "[ ]"], "has lists written as text, such as [0, 3]; needed: labels joined by ; or"),
}


@pytest.mark.parametrize("name", NO_LISTS)
def test_lists_are_never_names_of_classes(name):
    cells, line = NO_LISTS[name]
    write("data/lists.jsonl", [{"text": text(row), "tags": cells[row % len(cells)]} for row in ROWS])
    refused(main, ["data/lists.jsonl"], says=f"data/lists.jsonl: tags: {line}")
    assert not OWN.exists()


def test_a_question_is_the_name_of_a_column():
    question = "What do you think of it?"
    write(
        "data/survey.csv", [{question: text(row), "Date of purchase": "2024", "queue": QUEUES[row % 3]} for row in ROWS]
    )
    said(main, "data/survey.csv", "--label", "queue")
    assert read_yaml(OWN)["survey"]["text"] == [question]


@pytest.mark.parametrize("option", [["--tenant", "user"], ["--keep-labels"]])
def test_an_option_without_effect_on_completions_is_refused_and_not_advised(option):
    asked = [{"prompt": f"Where is {row}?", "completion": text(row), "user": row % 2} for row in ROWS]
    write("data/asked.csv", asked)
    refused(main, ["data/asked.csv", *option], says=f"{option[0]}: has no effect on completions")
    assert "--tenant user" not in said(main, "data/asked.csv")


def test_numbers_that_are_written_in_two_ways_are_one_class_in_words_or_refused():
    write("data/ways.csv", "text,label\n" + "".join(f"{text(row)},{('1', '1.0', '2')[row % 3]}\n" for row in ROWS))
    refused(main, ["data/ways.csv", "--keep-labels"], says="which would be one name, 1: write it in one way")
    assert "\n  merged  1.0 as 1 (40 rows); --keep-labels" in said(main, "data/ways.csv")
    table = pd.read_csv("data/ways.csv")  # to which both are the number 1
    assert loaded("ways") == dict(zip(table["text"], table["label"].astype(int).astype(str), strict=True))


def test_numbers_with_a_decimal_comma_are_classes_and_it_is_said():
    stars = ["1", "2,5", "4"]
    rows = "".join(f"{text(row)};{stars[row % 3]}\n" for row in ROWS)
    write("data/commas.csv", f"text;stars\n{rows}")
    shown = said(main, "data/commas.csv")
    table = pd.read_csv("data/commas.csv", sep=";", decimal=",")
    assert table["stars"].dtype == float
    assert read_yaml(OWN)["commas"]["label"]["names"] == stars
    assert "\n  numbers with a comma are taken for classes; to predict a number, write them with a point\n" in shown
    write("data/points.csv", f"text;stars\n{rows.replace(',', '.')}")
    assert "numbers" not in said(main, "data/points.csv")
    assert read_yaml(OWN)["points"]["label"] == {"column": "stars", "low": 1, "high": 4}


def test_a_word_for_a_missing_number_leaves_numbers():
    write("data/scale.csv", [{"text": text(row), "stars": "n/a" if row % 10 == 3 else row / 8} for row in ROWS])
    shown = said(main, "data/scale.csv")
    assert read_yaml(OWN)["scale"]["label"] == {"column": "stars", "low": 0, "high": 119 / 8}
    assert "missing n/a (12 rows), taken for no label" in shown
    assert "merged" not in shown


@pytest.mark.parametrize("word", ["n/a", "NaN", "<NA>"])
def test_numbers_with_words_for_missing_ones_may_be_the_label_whatever_the_column_is_called(word):
    write("data/heights.csv", [{"text": text(row), "height": word if row % 10 == 3 else row / 8} for row in ROWS])
    refused(main, ["data/heights.csv"], says="data/heights.csv: which column is to be predicted? --label height")


@pytest.mark.parametrize("word", ["unknown", "-", "1,5"])
@pytest.mark.parametrize("column", ["height", "stars"])
def test_of_a_column_that_looks_like_numbers_the_first_other_cell_is_named(column, word):
    rows = [{"text": text(row), "place": f"room {row}", column: word if row % 10 == 3 else row / 8} for row in ROWS]
    write("data/heights.csv", rows)
    line = refused(main, ["data/heights.csv"])
    assert f"looks like numbers, but row 4 has '{word}'; needed" in line
    chosen = refused(main, ["data/heights.csv", "--label", column])
    assert f"{column} is not a label: it looks like numbers, but row 4 has '{word}'; needed are numbers" in chosen


def test_texts_that_validation_and_test_of_ones_own_share_are_kept_and_counted():
    rows = [{"body": text(row), "queue": QUEUES[row % 3]} for row in range(120)]
    parts = {"train": rows[:70], "held": rows[70:100], "final": rows[95:]}
    for split, part in parts.items():
        write(f"data/{split}.csv", part)
    shown = said(main, "data/train.csv", "--validation", "data/held.csv", "--test", "data/final.csv")
    assert "\n  splits  train 70, validation 30, test 25\n" in shown
    assert "\n  shared  5 texts of test are in validation, too, which chooses the checkpoint and thresholds" in shown


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_file_with_a_split_of_another_run_has_all_splits(split):
    rows = [{"text": text(row), "label": QUEUES[row % 3]} for row in range(3000)]
    write("data/all.csv", rows)
    said(main, "data/all.csv")
    assert "stratify" not in read_yaml(OWN)["all"]
    part = frames(datasets.load(params.load_entry("data", "all"), "all"))[split]
    known = {row["text"]: row["label"] for row in rows}
    table = part.assign(label=part["text"].map(known))
    table.to_csv("data/part.csv", index=False)
    said(main, "data/part.csv")
    assert read_yaml(OWN)["part"]["stratify"]
    splits = frames(datasets.load(params.load_entry("data", "part"), "part"))
    for name, share in {"validation": 0.1, "test": 0.2}.items():
        counts = splits[name]["label"].map(dict(enumerate(QUEUES))).value_counts()
        assert (counts / table["label"].value_counts()).tolist() == pytest.approx([share] * 3, abs=0.01)
    write("data/numbers.csv", [{"text": row, "label": number / 7} for number, row in enumerate(table["text"])])
    refused(main, ["data/numbers.csv"], says="; no text has a hash in its share: name ")


def test_splits_of_ones_own_are_taken_as_they_are():
    for split, count in {"train": 80, "held": 30, "final": 10}.items():
        rows = [
            {"body": f"{split}: {text(row)}", "queue": QUEUES[row % 3].upper() if row == 4 else QUEUES[row % 3]}
            for row in range(count)
        ]
        write(f"data/{split}.csv", rows)
    shown = said(main, "data/train.csv", "--validation", "data/held.csv", "--test", "data/final.csv")
    row = read_yaml(OWN)["train"]
    files = {"train": "data/train.csv", "validation": "data/held.csv", "test": "data/final.csv"}
    assert (row["source"]["files"], row["split"]) == (files, {})
    assert "added train: 120 rows of data/train.csv, data/held.csv, data/final.csv\n" in shown
    assert "\n  splits  train 80, validation 30, test 10\n" in shown
    main(["data/train.csv", "--test", "data/final.csv", "--name", "other"])
    assert read_yaml(OWN)["other"]["split"] == {"validation": 0.1}
    sizes = {
        split: len(table) for split, table in frames(datasets.load(params.load_entry("data", "other"), "other")).items()
    }
    assert sizes["test"] == 10
    assert sizes["train"] + sizes["validation"] == 80


def test_files_that_are_written_in_different_ways_are_refused_and_ascii_is_a_part_of_most_encodings():
    rows = [{"text": f"café {text(row)}", "label": row % 2} for row in ROWS]
    plain = [{"text": f"plain {text(row)}", "label": row % 2} for row in ROWS]
    pd.DataFrame(rows).to_csv("data/excel.csv", index=False, encoding="cp1252")
    pd.DataFrame(plain).to_csv("data/ascii.csv", index=False)
    pd.DataFrame(plain).to_csv("data/semicolons.csv", index=False, sep=";")
    write("data/utf8.csv", rows)
    said(main, "data/excel.csv", "--test", "data/ascii.csv")
    assert read_yaml(OWN)["excel"]["source"]["encoding"] == "cp1252"
    says = "encoding: data/excel.csv has cp1252 and data/utf8.csv has the default; save the files in the same way"
    refused(main, ["data/excel.csv", "--test", "data/utf8.csv", "--name", "a"], says=says)
    says = "delimiter: data/excel.csv has the default and data/semicolons.csv has ;; save the files"
    refused(main, ["data/excel.csv", "--test", "data/semicolons.csv", "--name", "a"], says=says)


WAYS = {  # how a file is written, and the words that are printed for it
    ("cp1252", ";"): "read as cp1252 (as in café), semicolons between columns",
    ("utf-16", "\t"): "read as utf-16 (as in café), tabs between columns",
    ("utf-8", "|"): "read as vertical bars between columns",
    ("utf-8", ","): "",
}


@pytest.mark.parametrize(("encoding", "delimiter"), WAYS)
def test_what_is_recognized_is_said_and_recorded_so_that_later_stages_read_the_same(encoding, delimiter, monkeypatch):
    table = pd.DataFrame([{"text": f"café {text(row)}; or, tea", "label": QUEUES[row % 3]} for row in ROWS])
    table.to_csv("data/ways.csv", index=False, encoding=encoding, sep=delimiter)
    shown = said(main, "data/ways.csv")
    (line,) = re.findall(r"\n  file    (.*)\n", shown) or [""]
    assert line == WAYS[encoding, delimiter]
    source = read_yaml(OWN)["ways"]["source"]
    assert source.get("encoding", "utf-8") == encoding
    assert source.get("delimiter", ",") == delimiter
    for recognize in ("encoding_of", "delimiter_of"):
        monkeypatch.delattr(f"pipeline.data.recognition.{recognize}")
    expected = pd.read_csv("data/ways.csv", encoding=encoding, sep=delimiter)
    assert loaded("ways") == dict(zip(expected["text"], expected["label"], strict=True))


def test_an_encoding_can_be_named():
    table = pd.DataFrame([{"text": f"ćma {text(row)}", "label": QUEUES[row % 3]} for row in ROWS])
    table.to_csv("data/ways.csv", index=False, encoding="iso8859_2")
    said(main, "data/ways.csv", "--encoding", "iso8859_2")
    assert loaded("ways") == dict(zip(table["text"], table["label"], strict=True))
    refused(main, ["data/ways.csv", "--encoding", "latin-99", "--name", "a"], says="--encoding: no encoding 'latin-99'")
    refused(main, ["data/ways.csv", "--sheet", "One", "--name", "a"], says="--sheet: has no effect; it is for .xlsx")


NAMES = {
    "my export (1).csv": "my-export-1",
    "Données d'été.CSV": "Donnees-d-ete",
    "tickets.2024.csv.gz": "tickets-2024",
    "2024.csv": "data-2024",
    "NULL.csv": "data-NULL",
    "1e5.csv": "data-1e5",
    "_-.csv": "data-_",
}


@pytest.mark.parametrize("file", NAMES)
def test_the_name_of_a_row_is_one_that_dvc_takes_for_text(file):
    content = Path("data/tickets.csv").read_bytes()
    Path("data", file).write_bytes(gzip.compress(content) if file.endswith("gz") else content)
    shown = said(main, f"data/{file}")
    assert list(read_yaml(OWN)) == [NAMES[file]]
    (override,) = re.findall(r"dvc exp run -S (\S+) ", shown)
    assert OverridesParser.create().parse_override(override).value() == NAMES[file]


def git(*words):
    return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout


def typed(command):
    """Run a command as a shell does after it is typed, that of DVC in this process."""
    for words in map(shlex.split, command.split(" && ")):
        if words[0] == "dvc":
            assert dvc.cli.main(words[1:]) == 0, command
        else:
            subprocess.run(words, capture_output=True, check=True)


STATES = {  # what was typed before
    "new": "",
    "staged": "git add data",
    "committed": "git add data && git commit -m First",
    "changed": "git add data && git commit -m First && tee -a 'data/my export (1).csv'",
    "in DVC": "dvc add 'data/my export (1).csv'",
    "ignored": "tee .gitignore",
}


OF_DVC = ("new", "in DVC")  # the states in which a command of DVC is printed or was typed, which takes seconds


@pytest.mark.parametrize(
    "state", [pytest.param(state, marks=[pytest.mark.nightly] * (state in OF_DVC)) for state in STATES]
)
def test_the_command_that_keeps_a_row_and_its_file_works_as_printed(state, monkeypatch):
    git("init", "--quiet")
    for key, value in {"user.name": "A", "user.email": "a@b"}.items():
        git("config", key, value)
    if state in OF_DVC:
        assert dvc.cli.main(["init", "--quiet"]) == 0
        assert dvc.cli.main(["config", "core.autostage", "true"]) == 0  # as in the repository
    git("commit", "--quiet", "--allow-empty", "--message", "Begin")
    Path("data/tickets.csv").rename("data/my export (1).csv")
    if state == "ignored":
        Path(".gitignore").write_text("/data\n")
    elif STATES[state]:
        for command in STATES[state].split(" && "):
            if command.startswith("tee"):
                with Path("data/my export (1).csv").open("a") as file:
                    file.write(f"999,{text(999)},other\n")
            else:
                typed(command)
    shown = said(main, "data/my export (1).csv")
    (line,) = [line for line in shown.splitlines() if line.startswith("To keep ")]
    command = line.partition(": ")[2]
    typed(command)
    tracked = git("ls-files", "-z", "data").split("\0")
    assert "data/datasets.yaml" in tracked
    if state in ("staged", "committed", "changed", "ignored"):
        assert (command == "git add data/datasets.yaml") == (state != "ignored")
        assert "data/my export (1).csv" in tracked
    else:
        assert command.endswith("dvc add 'data/my export (1).csv'")
        assert "data/my export (1).csv.dvc" in tracked


def test_names_of_columns_are_quoted_where_they_are_to_be_typed():
    rows = [{"the text": text(row), "a queue": QUEUES[row % 3], "b's team": row % 4} for row in ROWS]
    write("data/two words.csv", rows)
    line = refused(main, ["data/two words.csv"], says="which column is to be predicted? --label ")
    assert shlex.split(line.partition("--label ")[2].replace(" or ", " ")) == ["a queue", "b's team"]
    write("data/three.csv", [{**row, "c": text(row["b's team"]), "d": text(1), "label": 1} for row in rows])
    line = refused(
        main, ["data/three.csv", "--label", "a queue"], says="which one or two columns are the text? --text "
    )
    assert shlex.split(line.partition("--text ")[2]) == ["the text", "c", "d"]


@pytest.mark.parametrize("name", ["label", "the product"])
def test_values_of_several_words_are_classes_where_they_recur(name):
    products = ["Credit card or prepaid card", "Checking or savings account", "Debt collection of old loans"]
    rows = [{"id": row * 3, "text": f"{text(row)} {row}", name: products[row % 3]} for row in range(1500)]
    write("data/loans.csv", rows)
    main(["data/loans.csv"])
    entry = read_yaml(OWN)["loans"]
    assert (entry["text"], entry["label"]) == (["text"], {"column": name, "names": sorted(products)})


def test_the_label_is_not_proposed_as_the_text_and_the_only_other_column_is_taken():
    write("data/short.csv", [{"text": f"ok{row}", "label": QUEUES[row % 3]} for row in ROWS])
    main(["data/short.csv"])
    assert read_yaml(OWN)["short"]["text"] == ["text"]
    write("data/codes.csv", [{"a": f"ok{row}", "b": f"no{row}", "label": QUEUES[row % 3]} for row in ROWS])
    line = refused(main, ["data/codes.csv"], says="which one or two columns are the text? --text ")
    assert line.endswith("--text a b")
    write("data/alone.csv", [{"label": QUEUES[row % 3]} for row in ROWS])
    says = "data/alone.csv: no column of texts next to the label label; needed: one or two"
    refused(main, ["data/alone.csv"], says=says)


SHOPS = [{"shop": f"s{row % 3}", "text": text(row), "queue": QUEUES[row % 2 + row % 3 // 2]} for row in ROWS]


def test_a_share_of_tenants_is_held_out_and_they_are_named():
    shown = said(main, "data/two.csv", "--label", "queue", "--tenant", "team", "--held-out-tenants", "0.25")
    row = read_yaml(OWN)["two"]
    assert (row["tenant"], row["held_out_tenants"]) == ("team", 0.25)
    first, *_ = sorted("0123", key=lambda name: hashlib.sha256(name.encode()).digest())
    assert f"\n  unseen  1 of 4 tenants, by a hash of the name: {first}\n" in shown
    assert "\n  label   queue, for each of 3 tenants one of its labels, 3 labels each\n" in shown
    assert ", held_out 30, by a hash of the text" in shown


@pytest.mark.parametrize("names", [["3"], ["2", "0"]])
def test_tenants_are_held_out_by_name(names):
    shown = said(main, "data/two.csv", "--label", "queue", "--tenant", "team", "--held-out-tenants", *names)
    assert read_yaml(OWN)["two"]["held_out_tenants"] == names
    assert f"\n  unseen  {len(names)} of 4 tenants: {', '.join(sorted(names))}\n" in shown


def test_a_column_of_tenants_gives_each_its_labels_and_one_that_may_be_of_them_is_noticed():
    write("data/shops.csv", SHOPS)
    shown = said(main, "data/shops.csv", "--tenant", "shop")
    row = read_yaml(OWN)["shops"]
    assert (row["tenant"], row["label"], row["metrics"]) == ("shop", {"column": "queue"}, ["accuracy", "macro_f1"])
    assert "  label   queue, for each of 3 tenants one of its labels, 2 labels each\n" in shown
    write("data/numbers.csv", [one | {"queue": at / 7} for at, one in enumerate(SHOPS)])
    main(["data/numbers.csv", "--tenant", "shop", "--label", "queue"])
    assert read_yaml(OWN)["numbers"]["label"] == {"column": "queue", "low": 0, "high": 17}
    write("data/may-be.csv", [{"Customer": one["shop"], **one} for one in SHOPS])
    shown = said(main, "data/may-be.csv", "--label", "queue")
    assert "if the column Customer has the tenant of each row: --tenant Customer\n" in shown


def test_tenants_whose_names_differ_only_in_case_or_space_stay_apart_and_it_is_said():
    names = ["Acme Inc", "acme  inc", "Bolt", "Bolt"]
    write("data/case.csv", [{**row, "shop": names[number % 4]} for number, row in enumerate(SHOPS)])
    shown = said(main, "data/case.csv", "--tenant", "shop")
    assert "for each of 3 tenants" in shown
    assert "\n  apart   Acme Inc and acme  inc are different tenants; write them in one way to merge them\n" in shown


AT_ONCE = """
import sys, time
from pipeline.add import __main__ as add

def slowly(path, read=add.read_yaml):
    content = read(path)
    time.sleep(0.5)
    return content

add.read_yaml = slowly
print("ready", flush=True)
sys.stdin.readline()
add.main(sys.argv[1:])
"""


def test_two_commands_at_once_both_add_their_row():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    commands = []
    for name in ("one", "two", "one"):
        words = [sys.executable, "-c", AT_ONCE, "data/tickets.csv", "--name", name]
        command = subprocess.Popen(words, env=environment, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True)
        commands.append(command)
    for command in commands:
        assert command.stdout.readline() == "ready\n"
    for command in commands:
        command.stdin.write("go\n")
        command.stdin.flush()
    shown = [command.communicate(timeout=60)[0] for command in commands]
    assert sorted(command.returncode for command in commands) == [0, 0, 2], shown
    assert sum("--name: there is an entry one already" in text for text in shown) == 1
    assert sorted(read_yaml(OWN)) == ["one", "two"]
    assert not list(Path("data").glob("*.lock"))  # all files there are inputs of the pipeline


@pytest.mark.parametrize(
    ("cells", "kind"),
    [([b"neg", b"pos"], "bytes"), ([[{"name": "a"}], [{"name": "b"}]], "objects")],
    ids=["bytes", "objects"],
)
def test_bytes_and_objects_are_no_labels(cells, kind):
    write("data/odd.parquet", [{"text": text(row), "kind": cells[row % 2]} for row in ROWS])
    problem = refused(main, ["data/odd.parquet"])
    assert f"kind holds {kind}; needed: a column of texts, numbers or lists of names" in problem
