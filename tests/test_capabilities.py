"""The page of capabilities says what the probes find."""

import re

import pytest

from docs import capabilities
from tests.lsr.subjects import METHODS
from tests.workspace import ROOT

TEXT = capabilities.PAGE.read_text(encoding="utf-8")


def read_column(text, method):
    """What a page says of a method, as `capabilities.column` has it."""
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:2] == "| "]
    place = rows[0].index(method)
    found = {row[0]: row[place] for row in rows[1:-1]}
    return {name: reasons[cell.strip("no []")] if cell.startswith("no ") else cell for name, cell in found.items()}


def test_lsrs_column_is_what_the_probes_find():
    assert read_column(TEXT, "LSR") == capabilities.column("LSR")


def test_the_page_is_what_is_written_from_its_columns():
    written = capabilities.page({method: read_column(TEXT, method) for method in METHODS})
    versions = r"with peft \S+ and transformers \S+\)"
    assert re.sub(versions, "", written) == re.sub(versions, "", TEXT)


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

    assert capabilities.reason(probe, None) == text


def test_a_probe_that_passes_is_a_yes():
    assert capabilities.reason(lambda subject, folder: None, None) == capabilities.HAS


def test_the_readme_counts_what_the_page_says():
    counts = {
        method: sum(cell == capabilities.HAS for cell in read_column(TEXT, method).values()) for method in METHODS
    }
    said = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for method in METHODS:
        assert re.search(rf"\b{method} (passes )?{counts[method]}\b", said), (method, counts[method])
    assert f"of {len(capabilities.BEHAVIOURS)} rows LSR passes" in said
