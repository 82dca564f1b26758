"""The page of capabilities says what the probes find."""

import re

import pytest

from tests.capabilities.__main__ import HAS, PAGE, column, page
from tests.capabilities.probes import BEHAVIORS
from tests.capabilities.subjects import COLUMNS
from tests.lsr.tuner.test_citizenship import REFUSED
from tests.workspace import ROOT

TEXT = PAGE.read_text(encoding="utf-8")


def passed(method):
    """The behaviors that the page says a method has."""
    header, *rows = (
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in TEXT.splitlines() if "|" in line
    )
    return {name for name, *cells in rows if name in BEHAVIORS and cells[header.index(method) - 1] == HAS}


def test_the_page_says_of_lsr_what_its_tests_prove():
    assert passed("LSR") == BEHAVIORS.keys() - REFUSED.keys(), "run: python -m tests.capabilities"


@pytest.mark.nightly
def test_the_page_is_what_the_probes_find_for_every_method():
    assert page({method: column(method) for method in COLUMNS}) == TEXT, "run: python -m tests.capabilities"


def test_the_documentation_counts_what_the_page_says():
    said = " ".join((ROOT / "docs/how-to/peft.md").read_text(encoding="utf-8").split())
    for method in COLUMNS:
        assert re.search(rf"\b{method} (passes )?{len(passed(method))}\b", said), method
    assert f"of {len(BEHAVIORS)} rows LSR passes" in said
