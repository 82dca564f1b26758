"""The page of capabilities lists what the probes find, and the documentation counts what the page lists."""

import re

import pytest

from docs.capabilities import HAS, PAGE, column, page
from tests.capabilities.probes import BEHAVIORS, REFUSED
from tests.old_tiny.subjects import METHODS
from tests.workspace import ROOT

TEXT = PAGE.read_text(encoding="utf-8")
REMEDY = "run: make capabilities"


def cells(line):
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def passed(method):
    """The behaviors that the page says a method has."""
    header, *rows = (cells(line) for line in TEXT.splitlines() if "|" in line)
    column = header.index(method)
    return {row[0] for row in rows if row[0] in BEHAVIORS and row[column] == HAS}


def test_the_page_says_of_lsr_what_its_tests_prove():
    assert passed("LSR") == BEHAVIORS.keys() - REFUSED.keys(), REMEDY


@pytest.mark.nightly
def test_the_page_is_what_the_probes_find_for_every_method():
    assert page({method: column(method) for method in METHODS}) == TEXT, REMEDY


def test_the_documentation_counts_what_the_page_says():
    text = " ".join((ROOT / "docs/how-to/peft.md").read_text(encoding="utf-8").split())
    for method in METHODS:
        assert re.search(rf"\b{method} (passes )?{len(passed(method))}\b", text), method
    assert f"of {len(BEHAVIORS)} rows LSR passes" in text
