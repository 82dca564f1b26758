"""The page of capabilities says what the probes find."""

import re

import pytest

from tests.capabilities.__main__ import HAS, PAGE, answer, column, page, read_column
from tests.capabilities.probes import BEHAVIORS
from tests.capabilities.subjects import METHODS
from tests.workspace import ROOT

TEXT = PAGE.read_text(encoding="utf-8")


def test_lsrs_column_is_what_the_probes_find():
    assert read_column(TEXT, "LSR") == column("LSR"), "run: python -m tests.capabilities"


@pytest.mark.nightly
def test_the_page_is_what_the_probes_find_for_every_method():
    assert page({method: column(method) for method in METHODS}) == TEXT, "run: python -m tests.capabilities"


def test_a_page_says_what_it_was_given():
    columns = {"LSR": {"a": HAS, "b": "cannot"}, "LoRA": {"a": "no way", "b": HAS}}
    text = page(columns)
    assert text.endswith("| of 2 | 1 | 1 |\n\n1. no way\n2. cannot\n")
    assert {method: read_column(text, method) for method in columns} == columns


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("no such thing. Try another.\nmore"), "no such thing"),
        (KeyError(), "KeyError"),
        (ValueError("word " * 60), f"{'word ' * 23}word ..."),
    ],
)
def test_a_reason_is_one_short_sentence(error, text):
    def probe(subject, folder):
        raise error

    assert answer(probe, None) == text


def test_the_documentation_counts_what_the_page_says():
    counts = {method: sum(cell == HAS for cell in read_column(TEXT, method).values()) for method in METHODS}
    said = " ".join((ROOT / "docs/how-to/peft.md").read_text(encoding="utf-8").split())
    for method in METHODS:
        assert re.search(rf"\b{method} (passes )?{counts[method]}\b", said), (method, counts[method])
    assert f"of {len(BEHAVIORS)} rows LSR passes" in said
