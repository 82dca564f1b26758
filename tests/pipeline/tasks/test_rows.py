"""A row becomes texts and a label, the same whether its file has types, as JSON and Parquet, or texts alone, as CSV."""

from decimal import Decimal
from itertools import product

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import tasks
from pipeline.tasks.cells import texts_of
from tests.pipeline.data.rows import NUMBER, SPLITS, row_of

NAMES = (("no", "yes"), ("0", "1"), ("1", "2"), ("0.0", "1.0"), ("-1", "1"), ("1", "01"))


def read(label, *values):
    label = {"column": "label", "names": label} if isinstance(label, tuple) else label
    task = tasks.of(row_of(dict.fromkeys(SPLITS, "a.jsonl"), label)).preprocessor
    labels = [task.label_of({"label": value}) for value in values]
    return task.finish_split(pd.DataFrame({"label": labels}), "train")[0]["label"].tolist()


def outcome(names, value):
    try:
        return read(names, value)
    except ValueError as error:
        return str(error).split()[0]


@given(names=st.sampled_from(NAMES), number=st.integers(-3, 3) | st.sampled_from([0.5, -0.0, 1e16, 10**17]))
def test_a_number_is_read_as_its_text_is(names, number):
    assert outcome(names, float(number)) == outcome(names, str(float(number)))
    assert outcome(names, int(number)) == outcome(names, str(int(number)))


def test_a_class_is_given_by_number_or_name_and_names_that_are_numbers_are_no_positions():
    assert read(("bad", "good"), 0, 1, "0", "1", "bad", "good", True, 1.0, "1.0") == [0, 1, 0, 1, 0, 1, 1, 1, 1]
    assert read(("1", "2", "3"), 1, "3", 2.0, "2.00") == [0, 2, 1, 1]
    assert read(("1.0", "2.0"), "2", 2) == [1, 1]
    assert read(("1", "01"), "01") == [1]
    assert read(("no", "yes"), " yes", "1 ") == [1, 1]  # space around is no other class


def test_the_positive_one_of_two_classes_is_the_second_output():
    label = {"column": "label", "names": ["bad", "good"]}
    assert read(label | {"positive": "bad"}, 0, "1", "bad", "good") == [1, 0, 1, 0]
    assert read(label | {"positive": "good"}, 0, "1", "bad", "good") == [0, 1, 0, 1]
    assert read(label | {"positive": "bad", "threshold": 3.0, "margin": 1.0}, 2, 5) == [1, 0]
    task = tasks.of(row_of(dict.fromkeys(SPLITS, "a.jsonl"), label | {"positive": "bad"}))
    assert task.head.names == ("good", "bad")
    assert task.description.of_class("f1") == " of bad"
    assert task.description.of_class("macro_f1") == ""


@pytest.mark.parametrize("value", ["01", "1.5", float("inf"), [1], 2])
def test_a_value_that_is_no_class_is_refused_and_the_nearest_named(value):
    with pytest.raises(ValueError, match=r"^label 'yess' is not a class; .*; did you mean yes\?$"):
        read(("no", "yes"), "yess")
    with pytest.raises(ValueError, match=r"^label .* is not a class; allowed: no, yes, or their numbers, 0 to 1$"):
        read(("no", "yes"), "no", value)


def test_of_names_that_are_numbers_no_other_numbers_are_allowed():
    with pytest.raises(ValueError, match=r"^label 0 is not a class; allowed: 1, 2, 3$"):
        read(("1", "2", "3"), 0)


@pytest.mark.parametrize("label", [("no", "yes"), NUMBER])
@pytest.mark.parametrize("value", ["-1.0", -1])
def test_hidden_labels_are_explained(label, value):
    with pytest.raises(ValueError, match=r"^the label is -1: the labels of this split are hidden"):
        read(label, value)


def test_a_threshold_leaves_out_what_is_closer_than_the_margin():
    label = {"column": "label", "names": ("bad", "good"), "threshold": 0.0, "margin": 0.5}
    found = read(label, -0.5, 0.5, -0.49, 0.49, 0, "2", -3)
    assert [None if value != value else value for value in found] == [0, 1, None, None, None, 1, 0]
    assert read(label | {"margin": 0.0}, 0, 0.001, -0.001) == [0, 1, 0]  # 0 itself is not above


def test_numbers_at_the_margin_are_kept_though_their_difference_is_rounded():
    for threshold, margin in product(range(1, 20), range(1, 10)):
        label = {"column": "label", "names": ("bad", "good"), "threshold": threshold / 10, "margin": margin / 10}
        ends = [str(Decimal(threshold + sign * margin) / 10) for sign in (-1, 1)]
        assert read(label, *ends) == [0, 1]
        nearer = [str(Decimal(threshold * 1000 + sign * (margin * 1000 - 1)) / 10_000) for sign in (-1, 1)]
        assert pd.isna(read(label, *nearer)).all()


def test_a_pair_at_the_margin_is_kept_though_its_difference_is_rounded():
    label = {"column": "label", "low": 0.0, "high": 9.0}
    entry = row_of(dict.fromkeys(SPLITS, "data.csv"), label, pairs={"margin": 0.4}, metrics=["accuracy"])
    preprocessor = tasks.of(entry).preprocessor
    numbers = [3.4, 3.0, 2.6, 3.0, 2.9]
    examples = pd.DataFrame({"text": list("abcde"), "label": numbers, "hash": range(5)})
    kept, left_out = preprocessor.finish_split(examples, "train")
    assert kept["label"].tolist() == [0, 0, 1]
    assert left_out["within_margin"] == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("five", "'five' is not a finite number"),
        ("inf", "'inf' is not"),
        (5.01, "5.01 is not in the entry's range, 0 to 5"),
    ],
)
def test_a_number_is_read_exactly_and_must_be_in_the_range(value, message):
    assert read(NUMBER, 1, "0.7333333333333334") == [1.0, 0.7333333333333334]
    with pytest.raises(ValueError, match=f"^label {message}"):
        read(NUMBER, value)


BY_WORD = {"column": "text", "word": "at", "text": "span"}
BY_CHARACTER = {"column": "text", "start": "start", "end": "end"}


def made(record, text=("text",), **settings):
    row = row_of(dict.fromkeys(SPLITS, "data.jsonl"), text=text, **settings)
    return [tuple(one.values()) for one in texts_of(record, row)]


def test_a_template_is_filled_and_its_values_are_not_looked_at_again():
    record = {"a": "the {b}", "b": "$1 \\1", "c d": "x"}
    assert made(record, ("{a}: {b}.{c d}", "b")) == [("the {b}: $1 \\1.x", "$1 \\1")]


@given(st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=12), st.data())
def test_of_equal_words_the_one_with_the_number_is_marked(words, data):
    at = data.draw(st.integers(0, len(words) - 1))
    ((marked,),) = made({"text": " ".join(words), "at": at, "span": words[at]}, span=[BY_WORD])
    assert marked.split() == [*words[:at], f"*{words[at]}*", *words[at + 1 :]]


@pytest.mark.parametrize(
    ("span", "record", "message"),
    [
        (BY_WORD, {"at": 5, "span": "one"}, "span 'one' is not at word 5 of text: 'one two three'"),
        (BY_WORD, {"at": "x", "span": "one"}, "at must be a whole number, got 'x'"),
        (BY_CHARACTER, {"start": 0, "end": 14}, "start 0 and end 14 are not in text: 'one two three'"),
    ],
)
def test_a_part_that_is_not_there_is_refused(span, record, message):
    with pytest.raises(ValueError, match=rf"^{message}"):
        made({"text": "one two three"} | record, span=[span])
