"""From a row to train, validation and test: three kinds of source, three kinds of label, cuts and duplicates."""

import hashlib
import io
import json
import os
import random
import shutil
import tarfile
import tempfile
import tracemalloc
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.core.errors import UserError
from pipeline.data import datasets, sources, usable
from pipeline.params.rows import DatasetRow
from pipeline.params.sources import FilesSource

CLASSES = {"column": "label", "names": ["bad", "good"]}
NUMBER = {"column": "label", "low": 0, "high": 5}
THRESHOLD = {**CLASSES, "above": 0.0, "margin": 0.5}


def load_splits(row, name):
    return frames(datasets.load(row, name))


def frames(loaded):
    return {split: table.to_pandas() for split, table in loaded.splits.items()}


def sentences(count):
    return [(f"sentence number {number}", number % 2) for number in range(count)]


def write_jsonl(path, rows, columns=("text", "label")):
    lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def make(tmp_path):
    """A function from the rows of each split (text, label) to the DatasetRow of the files that hold them."""

    def build(label=CLASSES, text=("text",), **settings):
        splits = {split: settings.pop(split) for split in ("train", "validation", "test") if split in settings}
        columns = (*text, "label")
        files = {split: write_jsonl(tmp_path / f"{split}.jsonl", rows, columns) for split, rows in splits.items()}
        return row_of(files, label=label, text=text, **settings)

    return build


def row_of(files, label=CLASSES, text=("text",), **settings):
    settings.setdefault("metrics", ["pearson"] if "low" in label else ["accuracy"])
    return DatasetRow(source={"kind": "files", "files": files}, label=label, text=text, **settings)


def refusal(row):
    with pytest.raises(UserError) as error:
        datasets.load(row, "mine")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("pipeline/datasets.yaml: mine: ")
    return str(error.value)


# Cuts


def test_cut_splits_and_train_hold_every_row_once(make):
    splits = load_splits(make(train=sentences(500), cut={"validation": 0.1, "test": 0.2}), "mine")
    texts = pd.concat(splits.values())["text"]
    assert sorted(texts) == sorted(text for text, _ in sentences(500))
    assert list(splits) == ["train", "validation", "test"]
    assert 30 < len(splits["validation"]) < 70
    assert 75 < len(splits["test"]) < 125


def test_a_cut_depends_on_no_other_row_and_not_on_the_order_of_the_source(make):
    cut = {"validation": 0.1, "test": 0.2}
    whole = load_splits(make(train=sentences(500), cut=cut), "mine")
    half = sentences(500)[::2] + sentences(500)[1:100:2]
    random.Random(0).shuffle(half)
    part = load_splits(make(train=half, cut=cut), "mine")
    chosen = {text for text, _ in half}
    for split, table in whole.items():
        pd.testing.assert_frame_equal(part[split], table[table["text"].isin(chosen)].reset_index(drop=True))


def test_a_cut_follows_the_sha256_of_the_text_and_orders_by_it(make):
    splits = load_splits(make(train=sentences(200), cut={"validation": 0.1, "test": 0.2}), "mine")
    share = {
        split: [int(hashlib.sha256(text.encode()).hexdigest(), 16) / 2**256 for text in table["text"]]
        for split, table in splits.items()
    }
    assert all(values == sorted(values) for values in share.values())
    assert max(share["test"]) < 0.2 <= min(share["validation"])
    assert max(share["validation"]) < 0.1 + 0.2 <= min(share["train"])


def test_a_split_of_the_source_keeps_its_rows_and_their_order(make):
    test = [("b", 1), ("a", 0), ("b", 1), ("A", 0)]
    splits = load_splits(make(train=sentences(100), test=test, cut={"validation": 0.2}), "mine")
    assert list(splits["test"].itertuples(index=False, name=None)) == test


def test_select_on_test_chooses_on_the_test_split_and_leaves_all_other_rows_to_train(make):
    row = make(train=sentences(50), test=sentences(60)[50:], cut={"validation": 0.5}, select_on="test")
    splits = load_splits(row, "mine")
    pd.testing.assert_frame_equal(splits["validation"], splits["test"])
    assert len(splits["train"]) == 50


def test_select_on_test_takes_a_test_split_that_is_larger_than_train(make):
    splits = load_splits(make(train=sentences(10), test=sentences(60)[10:], select_on="test"), "mine")
    assert {split: len(table) for split, table in splits.items()} == {"train": 10, "validation": 50, "test": 50}


# Duplicates


def test_the_first_of_two_equal_texts_in_train_stays(make):
    twice = [*sentences(20), ("  SENTENCE\u00a0number\t0 ", 1), ("\uff53entence number 1", 0)]
    loaded = datasets.load(make(train=twice, validation=[("v", 0)], test=[("t", 0)]), "mine")
    train = frames(loaded)["train"]
    assert sorted(zip(train["text"], train["label"], strict=True)) == sorted(sentences(20))
    assert loaded.dropped == {"missing": 0, "within_margin": 0, "duplicate": 2}


@pytest.mark.parametrize(
    "other", ["hello  world", "HELLO WORLD", "\u210cello world", "hello\u3000world ", "hel\u2113o world"]
)
def test_texts_are_the_same_whatever_their_case_spacing_and_typography(other):
    assert usable.fold(other) == usable.fold("Hello world") == "hello world"


def test_a_text_of_another_split_of_the_source_leaves_train(make):
    row = make(train=sentences(20), validation=[("Sentence number 3", 0)], test=[("SENTENCE NUMBER 4", 0)])
    loaded = datasets.load(row, "mine")
    assert {"sentence number 3", "sentence number 4"}.isdisjoint(loaded.splits["train"]["text"])
    assert loaded.dropped["duplicate"] == 2


def test_a_cut_split_never_shares_a_sentence_with_train(make):
    shouted = [(text.upper(), label) for text, label in sentences(300)]
    splits = load_splits(make(train=sentences(300) + shouted, cut={"validation": 0.2, "test": 0.2}), "mine")
    folded = {split: set(map(usable.fold, table["text"])) for split, table in splits.items()}
    assert sum(map(len, folded.values())) == len(set().union(*folded.values())) == 300


def test_pairs_are_equal_only_if_both_texts_are(make):
    pairs = [("a", "b", 0), ("a", "c", 1), ("b", "a", 0), ("A", "B", 1), ("a b", "c", 0), ("a", "b c", 1), ("x", "", 0)]
    row = make(text=("one", "two"), train=pairs, validation=[("v", "v", 0)], test=[("t", "t", 0), ("a", "c", 0)])
    loaded = datasets.load(row, "mine")
    train = frames(loaded)["train"]
    assert list(train.columns) == ["text", "text_pair", "label"]
    assert set(zip(train["text"], train["text_pair"], strict=True)) == {
        ("a", "b"),
        ("b", "a"),
        ("a b", "c"),
        ("a", "b c"),
    }
    assert loaded.dropped == {"missing": 1, "within_margin": 0, "duplicate": 2}


def test_duplicates_with_another_label_than_the_row_that_stays_are_counted(make):
    train = [("a", 0), ("A", 1), ("a ", 0), ("b", 1), ("c", 0), ("B", 0), ("v", 1), ("V", 0)]
    loaded = datasets.load(make(train=train, validation=[("v", 1)], test=[("t", 0)]), "mine")
    assert loaded.dropped["duplicate"] == 5
    assert loaded.conflicting == 3  # A against a, B against b, V against v of validation
    assert set(map(tuple, frames(loaded)["train"].itertuples(index=False))) == {("a", 0), ("b", 1), ("c", 0)}


# Labels


def labels_of(make, label, values):
    numbered = [(f"text {number}", value) for number, value in enumerate(values)]
    train = [("low", -1), ("high", 1)] if "above" in label else sentences(4)
    loaded = datasets.load(make(label=label, train=train, validation=[("v", 1)], test=numbered), "mine")
    return frames(loaded)["test"]["label"], loaded.dropped


def test_a_class_is_given_by_number_or_name(make):
    labels, _ = labels_of(make, CLASSES, [0, 1, "0", "1", "bad", "good", True, 1.0])
    assert labels.tolist() == [0, 1, 0, 1, 0, 1, 1, 1]
    assert labels.dtype == np.int64


def test_names_that_are_numbers_are_names_and_not_positions(make):
    stars = {"column": "label", "names": ["1", "2", "3"]}
    train = [("a", 1), ("b", 2), ("c", "3")]
    splits = load_splits(make(label=stars, train=train, validation=[("v", "1")], test=[("t", 3)]), "mine")
    assert dict(zip(splits["train"]["text"], splits["train"]["label"], strict=True)) == {"a": 0, "b": 1, "c": 2}
    assert splits["test"]["label"].tolist() == [2]


@pytest.mark.parametrize("value", ["goood", 2, 0.5, "01", [1]])
def test_another_value_is_refused_with_its_row_and_the_allowed_ones(make, value):
    row = make(train=[*sentences(4), ("x", value)], validation=[("v", 0)], test=[("t", 0)])
    message = refusal(row)
    assert f"train.jsonl: row 5: label {value!r} is not a class; allowed: bad, good, 0, 1" in message
    assert ("did you mean good?" in message) == (value == "goood")


@pytest.mark.parametrize("label", [CLASSES, NUMBER])
def test_hidden_labels_are_refused(make, label):
    row = make(label=label, train=sentences(4), validation=[("v", 0)], test=[("t", -1)])
    assert "test.jsonl: row 1: the label is -1: the labels of this split are hidden" in refusal(row)


def test_a_threshold_leaves_out_what_is_closer_than_the_margin(make):
    labels, dropped = labels_of(make, THRESHOLD, [-0.5, 0.5, -0.49, 0.49, 0, "2", -3])
    assert labels.tolist() == [0, 1, 1, 0]
    assert dropped["within_margin"] == 3


def test_without_a_margin_the_threshold_itself_is_not_above(make):
    labels, _ = labels_of(make, {**CLASSES, "above": 0.0}, [0, 0.001, -0.001])
    assert labels.tolist() == [0, 1, 0]


def test_numbers_are_floats(make):
    labels, _ = labels_of(make, NUMBER, [1, "2.5", 4.75])
    assert labels.tolist() == [1.0, 2.5, 4.75]
    assert labels.dtype == np.float64


@pytest.mark.parametrize("value", ["nan", "inf", float("nan"), "five", [1]])
def test_a_number_that_is_not_finite_is_refused(make, value):
    row = make(label=NUMBER, train=[*sentences(2), ("x", value)], validation=[("v", 0)], test=[("t", 0)])
    assert f"train.jsonl: row 3: label {value!r} is not a finite number" in refusal(row)


@pytest.mark.parametrize("value", [5.01, -0.5, "17", 1e300])
def test_a_number_outside_of_the_range_is_refused_with_its_row(make, value):
    row = make(label=NUMBER, train=[("low", 0), ("high", 5.0), ("x", value)], validation=[("v", 0)], test=[("t", 5)])
    assert f"train.jsonl: row 3: label {float(value):g} is not in the row's range, 0 to 5" in refusal(row)


# Strata


def test_strata_take_the_share_of_each_class_in_the_order_of_the_hash(make):
    train = [(f"sentence number {number}", int(number % 10 == 0)) for number in range(400)]
    row = make(train=train, cut={"validation": 0.1, "test": 0.2}, stratify=True)
    splits = load_splits(row, "mine")
    assert {split: table["label"].value_counts().to_dict() for split, table in splits.items()} == {
        "train": {0: 252, 1: 28},
        "validation": {0: 36, 1: 4},
        "test": {0: 72, 1: 8},
    }
    hashes = {text: hashlib.sha256(text.encode()).digest() for text, _ in train}
    for label in (0, 1):
        of_class = sorted((text for text, number in train if number == label), key=hashes.get)
        assert set(of_class[: len(of_class) // 5]) == set(splits["test"].query("label == @label")["text"])


# Missing values, and splits that are left without rows


def test_missing_texts_and_labels_are_dropped_and_counted_per_row(make):
    train = [*sentences(10), ("", 1), ("  ", 1), (None, 1), ("x", None), ("y", ""), (None, None)]
    loaded = datasets.load(make(train=train, validation=[("v", 0), ("", 0)], test=[("t", 0)]), "mine")
    assert len(loaded.splits["train"]) == 10
    assert loaded.dropped == {"missing": 7, "within_margin": 0, "duplicate": 0}


@pytest.mark.parametrize("value", [5, ["a"], {"a": 1}])
def test_a_text_that_is_no_text_is_refused(make, value):
    row = make(train=[(value, 1)], validation=[("v", 0)], test=[("t", 0)])
    assert f"train.jsonl: row 1: a text must be text, got {value!r}" in refusal(row)


def test_half_a_character_is_refused(make):
    row = make(train=[("\ud83d", 1)], validation=[("v", 0)], test=[("t", 0)])
    assert "train.jsonl: row 1: a text must be valid Unicode, got '\\ud83d'" in refusal(row)


def test_an_empty_split_is_refused_with_counts(make):
    row = make(train=sentences(20), validation=[("", 0)], test=[("t", 0)])
    message = refusal(row)
    assert "validation is empty; rows: train 20, validation 0, test 1; dropped: missing 1, within_margin 0" in message
    assert message.endswith(", duplicate 0; of " + row.source.files["validation"])


def test_a_class_without_a_row_in_train_is_refused_with_counts(make):
    row = make(train=[("a", 1), ("b", 1)], validation=[("v", 0)], test=[("t", 0)])
    assert "train has no row of a class; rows per class: bad 0, good 2" in refusal(row)


# Pairs of rated texts


def rated(count, begin=0):
    return [(f"sentence number {number}", number * 37 % 51 / 10) for number in range(begin, begin + count)]


def rated_row(make, margin=1.0, **settings):
    return make(label=NUMBER, metrics=["accuracy"], pairs={"margin": margin}, **settings)


def test_pairs_are_the_rows_of_the_same_row_without_pairs_split_by_split(make):
    cut = {"validation": 0.2, "test": 0.2}
    single = load_splits(make(label=NUMBER, train=rated(300), cut=cut), "mine")
    loaded = datasets.load(rated_row(make, train=rated(300), cut=cut), "mine")
    left_out = 0
    for split, table in frames(loaded).items():
        rows = list(single[split].itertuples(index=False, name=None))  # in the order of their hashes
        both = list(zip(rows[::2], rows[1::2], strict=False)) if split == "test" else list(pairwise(rows))
        expected = [(a, b, int(x < y)) for (a, x), (b, y) in both if abs(x - y) >= 1]
        assert list(table.itertuples(index=False, name=None)) == expected
        assert list(table.columns) == ["text", "text_pair", "label"]
        left_out += len(both) - len(expected)
    assert loaded.dropped == {"missing": 0, "within_margin": left_out, "duplicate": 0}


def test_the_order_of_the_source_changes_no_pair(make):
    shuffled = random.Random(0).sample(rated(200), 200)
    test = rated(40, begin=500)
    one, other = (
        load_splits(rated_row(make, train=train, test=held_out, cut={"validation": 0.2}), "mine")
        for train, held_out in ((rated(200), test), (shuffled, test[::-1]))
    )
    for split, table in one.items():
        pd.testing.assert_frame_equal(table, other[split])


def test_no_sentence_is_in_the_pairs_of_two_splits_nor_twice_in_those_of_test(make):
    shouted = [(text.upper(), number) for text, number in rated(300)]
    row = rated_row(make, train=rated(300) + shouted, cut={"validation": 0.2, "test": 0.2})
    folded = {
        split: [usable.fold(text) for name in ("text", "text_pair") for text in table[name]]
        for split, table in load_splits(row, "mine").items()
    }
    assert sum(len(set(texts)) for texts in folded.values()) == len(set().union(*folded.values())) > 200
    assert len(set(folded["test"])) == len(folded["test"])


def test_select_on_test_makes_the_pairs_of_test_once(make):
    row = rated_row(make, train=rated(30), test=rated(100, begin=500), select_on="test")
    loaded = datasets.load(row, "mine")
    splits = frames(loaded)
    pd.testing.assert_frame_equal(splits["validation"], splits["test"])
    assert len(splits["train"]) + len(splits["test"]) + loaded.dropped["within_margin"] == 29 + 50


def test_pairs_that_are_all_within_the_margin_are_refused_with_counts(make):
    row = rated_row(make, margin=5, train=rated(20), validation=[("v", 0), ("w", 4)], test=[("t", 0), ("u", 5)])
    assert "train is empty; rows: train 0, validation 0, test 1; dropped: missing 0, within_margin 20" in refusal(row)


def test_pairs_leave_no_file_behind(make, tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    held_out = {"validation": [("v", 0), ("w", 4)], "test": [("t", 0), ("u", 5)]}
    loaded = datasets.load(rated_row(make, train=rated(20), **held_out), "mine")
    assert list(folder.iterdir()) == []
    assert {loaded.splits["test"][0][name] for name in ("text", "text_pair")} == {"t", "u"}


# Files


def frame(prefix):
    return pd.DataFrame({"id": range(4), "text": [f"{prefix} {n}, ü" for n in range(4)], "label": [0, 1, 0, 1]})


@pytest.mark.parametrize(
    ("ending", "write"),
    [
        ("csv", lambda table, path: table.to_csv(path, index=False)),
        ("tsv", lambda table, path: table.to_csv(path, index=False, sep="\t")),
        ("jsonl", lambda table, path: table.to_json(path, orient="records", lines=True)),
        ("json", lambda table, path: table.to_json(path, orient="records", lines=True, force_ascii=False)),
        ("parquet", lambda table, path: table.to_parquet(path)),
    ],
)
def test_every_format_gives_the_same_tables(tmp_path, ending, write):
    files = {split: str(tmp_path / f"{split}.{ending}") for split in ("train", "validation", "test")}
    for split, path in files.items():
        write(frame(split), path)
    splits = load_splits(row_of(files), "mine")
    for split in ("validation", "test"):
        pd.testing.assert_frame_equal(splits[split], frame(split)[["text", "label"]])
    assert sorted(splits["train"]["text"]) == sorted(frame("train")["text"])


def splits_of_text(tmp_path, ending, content):
    for split in ("validation", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", [("held out", 1)])
    path = tmp_path / f"train.{ending}"
    path.write_bytes(content.encode("utf-8"))
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("validation", "test")}
    return row_of({"train": str(path), **files})


@pytest.mark.parametrize("word", ["NA", "null", "None", "nan", "N/A"])
def test_words_that_look_like_a_missing_value_are_text_in_csv(tmp_path, word):
    row = splits_of_text(tmp_path, "csv", f"text,label\n{word},0\nother,1\n")
    assert sorted(load_splits(row, "mine")["train"]["text"]) == sorted([word, "other"])


def test_csv_has_quotes_line_breaks_in_texts_and_a_byte_order_mark(tmp_path):
    row = splits_of_text(tmp_path, "csv", '\ufefftext,label\r\n"a ""b"",\nc",0\r\n\r\nd,1\r\n')
    assert sorted(load_splits(row, "mine")["train"]["text"]) == ['a "b",\nc', "d"]


def test_csv_holds_long_texts(tmp_path):
    row = splits_of_text(tmp_path, "csv", f"text,label\n{'x' * 200_000},0\nd,1\n")
    assert max(map(len, load_splits(row, "mine")["train"]["text"])) == 200_000


def test_quotes_are_text_in_tsv(tmp_path):
    row = splits_of_text(tmp_path, "tsv", 'text\tlabel\n"open\t0\r\n"b" c\u2028d\re\t1\n')
    assert sorted(load_splits(row, "mine")["train"]["text"]) == ['"b" c\u2028d\re', '"open']


def test_dates_are_text_and_classes_in_json(tmp_path):
    row = splits_of_text(
        tmp_path, "jsonl", '{"text": "2024-01-02", "label": 0}\n{"text": "2024-01-03", "label": "1"}\n'
    )
    assert sorted(load_splits(row, "mine")["train"]["text"]) == ["2024-01-02", "2024-01-03"]


@pytest.mark.parametrize(
    ("ending", "content", "message"),
    [
        ("csv", "texts,label\na,0\n", "train.csv: no column 'text'; did you mean texts?; columns: texts, label"),
        ("csv", "", "train.csv: no column 'text'; there are no columns"),
        ("csv", "text,label\na,b,0\n", "train.csv: line 2 has 3 columns, not 2"),
        ("csv", 'text,label\n"a,0\n', "train.csv: unexpected end of data"),
        ("csv", 'text,label\n"a\nb",0\n"c\n"d,0\n', "expected after '\"', in the row that begins on line 4"),
        ("csv", "text,text\na,0\n", "train.csv: columns must differ from each other, got text, text"),
        ("tsv", "text\tlabel\na\n", "train.tsv: line 2 has 1 columns, not 2"),
        (
            "tsv",
            "text,label\na,0\n",
            "columns: text,label; are the columns separated by ','? the extension for that is .csv",
        ),
        ("csv", "text\tlabel\na\t0\n", "are the columns separated by '\\t'? the extension for that is .tsv"),
        ("csv", "text;label\na;0\n", "are the columns separated by ';'? separate them by commas (.csv) or tabs (.tsv)"),
        ("csv", "text,label\na;0\n", "train.csv: line 2 has 1 columns, not 2; are the columns separated by ';'?"),
        ("jsonl", '{"text": "a", "label": 0}\n{"text"\n', "train.jsonl: line 2 is not JSON"),
        ("json", "[1]\n", "train.json: line 1 must be a JSON object, got list"),
        ("parquet", "no parquet", "train.parquet: "),
        ("jsonl", "[" * 100_000, "train.jsonl: line 1 is not JSON: maximum recursion depth"),
        ("jsonl", '{"text": ' + "1" * 5000, "train.jsonl: line 1 is not JSON: Exceeds the limit"),
        ("csv", "text,label\n" + "x" * 10_000_001, "train.csv: line 2 has over 10,000,000 characters"),
        ("tsv", "x" * 10_000_001, "train.tsv: line 1 has over 10,000,000 characters"),
        (
            "csv",
            f"text,label\n{'x' * 1_000_001},0\n",
            "train.csv: row 1: a text of 1,000,001 characters; at most 1,000,000",
        ),
        (
            "csv",
            'text,label\n"' + "x\n" * 6_000_000,
            "field larger than field limit (10000000), in the row that begins",
        ),
        ("xls", "a", "train.xls: the extension must be one of .csv, .tsv, .txt, .jsonl, .json, .parquet"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, ending, content, message):
    assert message in refusal(splits_of_text(tmp_path, ending, content))


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a folder"])
def test_what_is_no_file_is_not_read(tmp_path, kind):
    row = splits_of_text(tmp_path, "csv", "")
    (tmp_path / "train.csv").unlink()
    if kind == "a pipe":
        os.mkfifo(tmp_path / "train.csv")
    elif kind == "a device":
        (tmp_path / "train.csv").symlink_to("/dev/zero")
    else:
        (tmp_path / "train.csv").mkdir()
    assert refusal(row).endswith("train.csv: not a file")


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    row = splits_of_text(tmp_path, "csv", "")
    (tmp_path / "train.csv").write_bytes("text,label\nü,0\n".encode() + "café,1\n".encode("latin-1"))
    assert "train.csv: not UTF-8: invalid continuation byte at byte 19, on line 3" in refusal(row)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    assert f"train: {tmp_path}/no.csv: not found" in refusal(
        row_of(dict.fromkeys(("train", "validation", "test"), str(tmp_path / "no.csv")))
    )


def test_a_column_that_some_lines_lack_is_missing_there(tmp_path):
    row = splits_of_text(tmp_path, "jsonl", '{"text": "a"}\n{"text": "b", "label": 0}\n{"text": "c", "label": 1}\n')
    assert datasets.load(row, "mine").dropped["missing"] == 1


def test_integers_with_a_null_in_parquet_stay_classes(tmp_path):
    row = splits_of_text(tmp_path, "parquet", "")
    pq.write_table(pa.table({"text": ["a", "b", "c"], "label": [0, None, 1]}), tmp_path / "train.parquet")
    loaded = datasets.load(row, "mine")
    assert sorted(loaded.splits["train"]["label"]) == [0, 1]
    assert loaded.dropped["missing"] == 1


def test_columns_are_named_where_the_files_have_no_header(tmp_path):
    """As GLUE's CoLA: source, label, the author's mark, sentence."""
    lines = ["gj04\t1\t\tOur friends won't buy this.", 'gj04\t0\t*\t"Bill whistled past.']
    files = {split: str(tmp_path / f"{split}.tsv") for split in ("train", "validation", "test")}
    for path in files.values():
        Path(path).write_text("\n".join(f"{line} {path}" for line in lines) + "\n")
    source = {"kind": "files", "files": files, "columns": ["source", "label", "mark", "text"]}
    row = DatasetRow(source=source, text=["text"], label=CLASSES, metrics=["accuracy"])
    test = load_splits(row, "mine")["test"]
    assert test["text"].tolist() == [f"{line.rsplit(chr(9), 1)[1]} {files['test']}" for line in lines]
    assert test["label"].tolist() == [1, 0]
    Path(files["test"]).write_text("text\t1\n")
    assert "test.tsv: line 1 has 2 columns, not 4" in refusal(row)


def test_lines_that_are_torn_can_be_left_out(tmp_path):
    content = "text\tlabel\na\t0\nb\ntorn\t1\t1\nc\t1\n"
    row = splits_of_text(tmp_path, "tsv", content)
    assert "line 3 has 1 columns, not 2" in refusal(row)
    source = row.source.model_copy(update={"broken_lines": "drop"})
    loaded = datasets.load(row.model_copy(update={"source": source}), "mine")
    assert sorted(frames(loaded)["train"]["text"]) == ["a", "c"]
    assert loaded.dropped["missing"] == 2


def nested(tmp_path, *lines):
    """The row of a file whose lines have a document with a title and a list of parts, each with text and label."""
    held_out = {"doc": {"title": "held out", "parts": [{"text": "held out", "label": 0}]}}
    for split, records in (("train", lines), ("test", [held_out])):
        (tmp_path / f"{split}.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
    return DatasetRow(
        source={"kind": "files", "files": files, "each": "doc.parts"},
        text=["doc.title", "doc.parts.text"],
        label={**CLASSES, "column": "doc.parts.label"},
        metrics=["accuracy"],
        select_on="test",
    )


def test_objects_in_lists_are_rows_with_what_stands_around_them(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BATCH", 2)
    parts = [{"text": f"part {number}", "label": number % 2} for number in range(3)]
    lines = ({"doc": {"title": title, "parts": parts[begin:]}} for title, begin in (("A", 0), ("B", 2)))
    found = load_splits(nested(tmp_path, *lines), "mine")["train"]
    assert sorted(zip(found["text"], found["text_pair"], found["label"], strict=True)) == [
        ("A", "part 0", 0), ("A", "part 1", 1), ("A", "part 2", 0), ("B", "part 2", 0),
    ]  # fmt: skip


@pytest.mark.parametrize("line", [{"doc": {"title": "A"}}, {"doc": 5}, {"doc": {"title": "A", "parts": ["x"]}}])
def test_a_line_without_the_list_is_refused(tmp_path, line):
    good = {"doc": {"title": "A", "parts": [{"text": "a", "label": 0}]}}
    assert "train.jsonl: line 2 has no list of objects at doc.parts" in refusal(nested(tmp_path, good, line))


def test_columns_of_a_file_that_names_its_own_are_refused():
    with pytest.raises(ValueError, match=r"columns are for csv and tsv files, got b\.jsonl"):
        FilesSource(kind="files", files={"train": "a.tsv", "test": "b.jsonl"}, columns=["text", "label"])


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_batches_change_nothing(tmp_path, monkeypatch, ending):
    write = {
        "csv": lambda table, path: table.to_csv(path, index=False),
        "tsv": lambda table, path: table.to_csv(path, index=False, sep="\t"),
        "jsonl": lambda table, path: table.to_json(path, orient="records", lines=True),
        "parquet": lambda table, path: table.to_parquet(path, row_group_size=7),
    }[ending]
    files = {split: str(tmp_path / f"{split}.{ending}") for split in ("train", "validation", "test")}
    for split, path in files.items():
        write(pd.DataFrame([(f"{split} {n % 30}", n % 2) for n in range(50)], columns=["text", "label"]), path)
    whole = load_splits(row_of(files), "mine")
    monkeypatch.setattr(sources, "BATCH", 8)
    for split, table in load_splits(row_of(files), "mine").items():
        pd.testing.assert_frame_equal(table, whole[split])


def test_rows_are_counted_from_the_first_one_of_the_file(make, monkeypatch):
    monkeypatch.setattr(sources, "BATCH", 8)
    row = make(train=[*sentences(20), ("x", "y")], validation=[("v", 0)], test=[("t", 0)])
    assert "train.jsonl: row 21: label 'y' is not a class" in refusal(row)


def test_what_is_wrong_with_the_last_file_does_not_wait_for_the_rows_of_the_first(tmp_path):
    row = splits_of_text(tmp_path, "csv", "text,label\na,perhaps\n")
    (tmp_path / "test.csv").write_text("texts,label\n")
    files = row.source.files | {"test": str(tmp_path / "test.csv")}
    assert "test.csv: no column 'text'; did you mean texts?" in refusal(row_of(files))


def test_texts_of_a_split_are_never_all_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BATCH", 100)
    row = splits_of_text(tmp_path, "csv", "text,label\n" + "".join(f"{n} {'x' * 2000},{n % 2}\n" for n in range(5000)))
    import_module("datasets")  # its own memory does not count
    tracemalloc.start()
    loaded = datasets.load(row, "mine")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(loaded.splits["train"]) == 5000
    assert peak < 3e6  # bytes, beside 10e6 of texts


def test_no_file_is_left_behind(make, tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    loaded = datasets.load(make(train=sentences(20), validation=[("v", 0)], test=[("t", 0)]), "mine")
    assert list(folder.iterdir()) == []
    assert loaded.splits["test"][0] == {"text": "t", "label": 0}


# Packages


def package_row(tmp_path, monkeypatch, content):
    """A row of a package that lies in the cache already; its file is inside an archive inside the package."""
    inner = archive({"data/ratings.txt": content})
    outer = archive({"toy-1.0/inner.tar.gz": inner})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "lsr-adapt").mkdir()
    (tmp_path / "lsr-adapt/toy-1.0.tar.gz").write_bytes(outer)
    source = {
        "kind": "package",
        "package": "toy==1.0",
        "sha256": hashlib.sha256(outer).hexdigest(),
        "members": ["toy-1.0/inner.tar.gz", "data/ratings.txt"],
        "columns": ["id", "label", "text"],
    }
    cut = {"validation": 0.2, "test": 0.2}
    return DatasetRow(source=source, text=["text"], label=THRESHOLD, metrics=["accuracy"], cut=cut)


def archive(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_package_file_has_no_quoting_and_either_line_end(tmp_path, monkeypatch, line_end):
    lines = [f'{number}\t{number % 5 - 2}\t"open number {number} ü\u0085x' for number in range(100)]
    loaded = datasets.load(package_row(tmp_path, monkeypatch, line_end.join(lines).encode()), "mine")
    texts = pd.concat(frames(loaded).values())["text"]
    assert sorted(texts) == sorted(line.split("\t")[2] for number, line in enumerate(lines) if number % 5 != 2)
    assert loaded.dropped["within_margin"] == 20


def test_a_line_of_a_package_file_with_another_number_of_columns_is_refused(tmp_path, monkeypatch):
    message = refusal(package_row(tmp_path, monkeypatch, b"1\t2\ta\n2\t3\n"))
    assert "data/ratings.txt: line 2 has 2 columns, not 3" in message


# The hub, as a local folder of the same form

CARD = """---
configs:
- config_name: mrpc
  data_files:
  - split: train
    path: mrpc/train-*
  - split: validation
    path: mrpc/validation-*
  - split: test
    path: mrpc/test-*
---
"""


@pytest.fixture
def glue(tmp_path, monkeypatch):
    """A folder with the form of GLUE on the hub; the row of it takes other settings of the source."""
    import datasets as hub

    monkeypatch.setattr(hub.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "glue"
    (folder / "mrpc").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    for split, count in {"train": 60, "validation": 10, "test": 5}.items():
        table = {
            "sentence1": [f"{split} {n}" for n in range(count)],
            "sentence2": [f"other {n}" for n in range(count)],
            "label": [n % 2 if split != "test" else -1 for n in range(count)],
            "idx": list(range(count)),
        }
        pq.write_table(pa.table(table), folder / f"mrpc/{split}-00000-of-00001.parquet")

    def row(**source):
        source = {"path": str(folder), "config": "mrpc", "splits": {"train": "train", "test": "validation"}, **source}
        return DatasetRow(
            source={"kind": "hub", **source},
            text=["sentence1", "sentence2"],
            label={"column": "label", "names": ["not_equivalent", "equivalent"]},
            metrics=["accuracy", "f1"],
            cut={"validation": 0.2},
        )

    return row


def test_a_folder_of_the_form_of_glue_loads_off_line(glue):
    splits = load_splits(glue(), "mine")
    assert splits["test"]["text"].tolist() == [f"validation {n}" for n in range(10)]
    assert splits["test"]["text_pair"].tolist() == [f"other {n}" for n in range(10)]
    assert splits["test"]["label"].tolist() == [0, 1] * 5
    assert len(splits["train"]) + len(splits["validation"]) == 60


def test_an_edited_folder_gives_its_new_rows(glue, tmp_path):
    load_splits(glue(), "mine")
    path = tmp_path / "glue/mrpc/validation-00000-of-00001.parquet"
    pq.write_table(pq.read_table(path).slice(0, 4), path)
    assert load_splits(glue(), "mine")["test"]["text"].tolist() == [f"validation {n}" for n in range(4)]


def test_loading_prints_nothing(glue, capfd):
    load_splits(glue(), "mine")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            {"splits": {"train": "train", "test": "test"}},
            "glue: row 1: the label is -1: the labels of this split",
        ),
        ({"config": "mrpx"}, "BuilderConfig 'mrpx' not found. Available: ['mrpc']"),
        ({"splits": {"train": "train", "test": "dev"}}, 'Unknown split "dev"'),
        (
            {"path": "nobody/nothing"},
            "'nobody/nothing' is not a local folder and not in the local cache, and offline mode",
        ),
    ],
)
def test_a_mistake_in_the_source_is_one_clear_line(glue, source, message):
    assert message in refusal(glue(**source))


def test_off_line_another_revision_in_the_cache_is_refused(glue, tmp_path):
    """`datasets` itself takes what it finds, with a warning."""
    load_splits(glue(), "mine")
    cached = next((tmp_path / "cache/glue").glob("mrpc*"))
    loaded = next(cached.glob("0.0.0/*/dataset_info.json")).parent
    old, new = "a" * 40, "b" * 40
    shutil.copytree(loaded, tmp_path / f"cache/nobody___glue/mrpc/0.0.0/{old}")
    assert len(load_splits(glue(path="nobody/glue", revision=old), "mine")["test"]) == 10
    assert f"the local cache holds another revision of 'nobody/glue' than {new}" in refusal(
        glue(path="nobody/glue", revision=new)
    )
