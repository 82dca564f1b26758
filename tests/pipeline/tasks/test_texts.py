"""A row becomes the texts of examples: marks, templates and choices."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tasks import texts
from tests.pipeline.data.rows import SPLITS, row_of

BY_WORD = {"column": "text", "word": "at", "says": "span"}
BY_CHARACTER = {"column": "text", "start": "start", "end": "end"}


def made(record, text=("text",), **settings):
    row = row_of(dict.fromkeys(SPLITS, "data.jsonl"), text=text, **settings)
    table = pd.DataFrame([record], pd.Index([7], name="line"))
    return [tuple(found.iloc[0]) for found in texts.of(table, row)]


def test_a_template_is_filled_and_its_values_are_not_looked_at_again():
    record = {"a": "the {b}", "b": "$1 \\1", "c d": "x"}
    assert made(record, ("{a}: {b}.{c d}", "b")) == [("the {b}: $1 \\1.x", "$1 \\1")]


@given(st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=12), st.data())
def test_of_equal_words_the_one_with_the_number_is_marked(words, data):
    at = data.draw(st.integers(0, len(words) - 1))
    ((marked,),) = made({"text": " ".join(words), "at": at, "span": words[at]}, mark=[BY_WORD])
    assert marked.split() == [*words[:at], f"*{words[at]}*", *words[at + 1 :]]


@pytest.mark.parametrize(
    ("mark", "record", "message"),
    [
        (BY_WORD, {"at": 5, "span": "one"}, "span 'one' is not at word 5 of text: 'one two three'"),
        (BY_WORD, {"at": "x", "span": "one"}, "at must be a whole number, got 'x'"),
        (BY_CHARACTER, {"start": 0, "end": 14}, "start 0 and end 14 are not in text: 'one two three'"),
    ],
)
def test_a_part_that_is_not_there_is_refused(mark, record, message):
    with pytest.raises(ValueError, match=rf"^line 7: {message}"):
        made({"text": "one two three"} | record, mark=[mark])
