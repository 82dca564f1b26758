"""The page in a real browser without a network: it sorts, filters, and says nothing to the console."""

from contextlib import chdir

import pytest

from pipeline.compare.comparison import compare
from pipeline.compare.page import page as html_of
from tests.browser import NARROW, WIDE, chromium, tab
from tests.pipeline.compare.records import prepare, preset, trainings, went
from tests.pipeline.compare.test_main import HOSTILE

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")

    def said(one):
        return went(one, status="failed", reason=HOSTILE) if one.method == "VeRA" else went(one)

    with chdir(folder):
        prepare(folder)
        found = compare("small", trainings(preset(seeds=[0, 1, 2]), said), preset(seeds=[0, 1, 2]), 300)
    (folder / "index.html").write_text(html_of(found), encoding="utf-8")
    return (folder / "index.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture
def opened(browser, address):
    """A function that opens the page at a hash and a width; at the end, there was no complaint and no request."""
    said = []

    def at(hash_="", width=WIDE):
        page = tab(browser, address + hash_, said, width)
        page.wait_for_function("document.documentElement.dataset.ready === 'yes'")
        return page

    yield at
    assert not said


def names(page):
    return page.locator("#table tbody .name").all_inner_texts()


def state(page):
    return page.evaluate("Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_it_opens_without_a_network_and_fits_the_window(width, opened):
    page = opened(width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for name in ("trained", "bytes", "differences"):
        assert page.locator(f"#{name}").bounding_box()["width"] <= width, name  # on a narrow screen it scrolls
        assert page.locator(f"#{name} svg").bounding_box()["width"] > 400, name


def test_a_header_sorts_and_a_link_shows_what_its_sender_saw(opened):
    page = opened("#task=rte&filter=lsr")
    assert sorted(names(page)) == ["LSR 200", "LSR r=3", "LoRA r=1"]
    assert page.locator("#counted").inner_text() == "3 of 8 methods"
    page.locator("#table thead th", has_text="trained").click()
    assert state(page) == {"task": "rte", "filter": "lsr", "sort": "trained:asc"}
    assert names(page)[0] == "LSR 200"
    assert page.locator("#trained circle").count() == 3
    page.get_by_role("button", name="Reset").click()
    assert (len(names(page)), state(page)) == (8, {})
    page.evaluate("location.hash = '#task=nothing'")
    page.wait_for_function("document.getElementById('task').value === 'average'")
