"""The tables of figures in README and documentation, and the picture, are what the reports give."""

import re
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


@pytest.mark.parametrize("name", ["docs/lsr.svg", tables.PICTURE, "docs/tenants.svg"])
def test_a_picture_of_the_first_screen_can_be_read_on_a_phone(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    (width,) = re.findall(r'viewBox="0 0 (\d+)', text)
    lines = re.findall(r'<text [^>]*font-size="(\d+)"', text)
    assert min(map(int, lines)) * 368 / int(width) > 10  # pixels, on a screen of 400 with its margins


def test_every_table_is_on_a_page():
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in tables.PAGES]
    assert {place[2] for text in texts for place in tables.PLACE.finditer(text)} == set(tables.TABLES)
