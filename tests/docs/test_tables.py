"""The tables of figures in README and documentation are what the committed reports give."""

import pytest

from docs import tables
from tests.workspace import ROOT


@pytest.mark.parametrize("page", tables.PAGES)
def test_the_tables_of_a_page_are_what_the_reports_give(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert tables.PLACE.search(text)
    assert tables.filled(text) == text, "run: python -m docs.tables"


def test_every_table_is_on_a_page():
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in tables.PAGES]
    assert {place[2] for text in texts for place in tables.PLACE.finditer(text)} == set(tables.TABLES)
