"""The tables of figures in README and documentation, and the picture, are what the reports give."""

import subprocess

import pytest

from docs import tables
from tests.workspace import ROOT


def committed(path):
    return subprocess.run(["git", "show", f"HEAD:{path}"], cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", [*tables.PAGES, tables.PICTURE])
def test_what_a_page_shows_is_what_the_reports_give(name, monkeypatch):
    text = (ROOT / name).read_text(encoding="utf-8")
    if tables.made(name) != text:  # reports that a reader's own `make repro` or `make bench` has written are no mistake
        monkeypatch.setattr(tables, "read", committed)
        assert tables.made(name) == text, "run: python -m docs.tables"


def test_every_table_is_on_a_page():
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in tables.PAGES]
    assert {place[2] for text in texts for place in tables.PLACE.finditer(text)} == set(tables.TABLES)
