"""From a row to train, validation and test: cuts, strata, duplicates, missing values and pairs."""

import hashlib
import random
from itertools import pairwise

import pandas as pd
import pytest

from pipeline.data import datasets
from pipeline.tasks.cells import fold
from tests.pipeline.data.rows import CLASSES, NUMBER, frames, load, refusal, row_of, write_jsonl

CUT = {"validation": 0.1, "test": 0.2}


def sentences(count):
    return [(f"sentence number {number}", number % 2) for number in range(count)]


@pytest.fixture
def make(tmp_path):
    """A function from the rows of each split (text, label) to the DatasetRow of the files that hold them."""

    def build(label=CLASSES, text=("text",), **settings):
        splits = {split: settings.pop(split) for split in ("train", "validation", "test") if split in settings}
        columns = (*text, "label")
        files = {split: write_jsonl(tmp_path / f"{split}.jsonl", rows, columns) for split, rows in splits.items()}
        return row_of(files, label, text, **settings)

    return build


# Cuts


def test_a_cut_depends_on_no_other_row_and_not_on_the_order_of_the_source(make):
    whole = load(make(train=sentences(500), cut=CUT))
    half = sentences(500)[::2] + sentences(500)[1:100:2]
    random.Random(0).shuffle(half)
    part = load(make(train=half, cut=CUT))
    chosen = {text for text, _ in half}
    for split, table in whole.items():
        pd.testing.assert_frame_equal(part[split], table[table["text"].isin(chosen)].reset_index(drop=True))


def test_a_cut_follows_the_sha256_of_the_text_and_orders_by_it(make):
    found = load(make(train=sentences(200), cut=CUT))
    assert sorted(pd.concat(found.values())["text"]) == sorted(text for text, _ in sentences(200))
    place = {
        split: [int(hashlib.sha256(text.encode()).hexdigest(), 16) / 2**256 for text in table["text"]]
        for split, table in found.items()
    }
    assert all(values == sorted(values) for values in place.values())
    assert max(place["test"]) < 0.2 <= min(place["validation"])
    assert max(place["validation"]) < 0.1 + 0.2 <= min(place["train"])


def test_select_on_test_chooses_on_the_test_split_and_leaves_all_other_rows_to_train(make):
    found = load(make(train=sentences(10), test=sentences(60)[10:], cut={"validation": 0.5}, select_on="test"))
    pd.testing.assert_frame_equal(found["validation"], found["test"])
    assert {split: len(table) for split, table in found.items()} == {"train": 10, "validation": 50, "test": 50}


def test_strata_take_the_share_of_each_class_in_the_order_of_the_hash(make):
    train = [(f"sentence number {number}", int(number % 10 == 0)) for number in range(400)]
    found = load(make(train=train, cut=CUT, stratify=True))
    assert {split: table["label"].value_counts().to_dict() for split, table in found.items()} == {
        "train": {0: 252, 1: 28},
        "validation": {0: 36, 1: 4},
        "test": {0: 72, 1: 8},
    }
    of_class = sorted((text for text, label in train if label), key=lambda text: hashlib.sha256(text.encode()).digest())
    assert set(of_class[:8]) == set(found["test"].query("label == 1")["text"])


# Duplicates


@pytest.mark.parametrize("other", ["HELLO  WORLD", "\u210cello world", "hello\u3000world ", "hel\u2113o world"])
def test_texts_are_the_same_whatever_their_case_spacing_and_typography(other):
    assert fold(other) == fold("Hello world") == "hello world"


def test_a_text_stays_in_train_once_and_not_if_another_split_has_it_and_what_is_left_out_is_counted(make):
    train = [("a", 0), ("A", 1), ("a ", 0), ("b", 1), ("c", 0), ("\uff22", 0), ("v", 1), ("V", 0)]
    missing = [("", 1), ("  ", 1), (None, 1), ("x", None), ("y", ""), (None, None)]
    loaded = datasets.load(make(train=train + missing, validation=[("v", 1), ("", 0)], test=[("t", 0)]), "mine")
    assert loaded.dropped == {"missing": 7, "within_margin": 0, "duplicate": 5}
    assert loaded.conflicting == 3  # A against a, B against b, V against v of validation
    assert set(frames(loaded)["train"].itertuples(index=False, name=None)) == {("a", 0), ("b", 1), ("c", 0)}


# Missing values, and splits that are left without rows


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


def test_pairs_are_made_of_the_rows_of_each_split(make):
    cut = {"validation": 0.2, "test": 0.2}
    single = load(make(label=NUMBER, train=rated(300), cut=cut))
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


def test_of_equal_texts_of_a_split_the_first_is_paired(make):
    once = {"validation": rated(40, 300), "test": rated(40, 400)}
    twice = {split: [*rows, *((text.upper(), 2.5) for text, _ in rows[:20])] for split, rows in once.items()}
    alone = load(rated_row(make, train=rated(100), **once))
    loaded = datasets.load(rated_row(make, train=rated(100), **twice), "mine")
    assert loaded.dropped["duplicate"] == 40
    for split, table in frames(loaded).items():
        pd.testing.assert_frame_equal(table, alone[split])
