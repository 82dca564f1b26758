"""The documentation builds without a warning, and a real browser opens every page of it from the disk."""

import re
import sys
from urllib.parse import unquote

import pytest

from tests.browser import NARROW, WIDE, chromium, tab
from tests.repository import command
from tests.workspace import ROOT

pytestmark = pytest.mark.nightly
SETTLED_WIDTH = """() => new Promise(told => requestAnimationFrame(() => requestAnimationFrame(
    () => told(document.documentElement.scrollWidth))))"""  # after the page has noticed its new size

FIGURES_FIT = """[...document.querySelectorAll('.figures .md-typeset__scrollwrap')].every(
    table => table.scrollWidth <= table.clientWidth)"""  # in cells of one line each


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    build = (sys.executable, "-m", "mkdocs", "build", "--site-dir", folder)
    command(ROOT, *build, NO_MKDOCS_2_WARNING="1", PYTHONPATH=str(ROOT))
    return folder


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


def test_every_page_opens_without_a_complaint_or_a_request(site, browser):
    said = []
    paths = sorted(path for path in site.rglob("*.html") if path.name != "404.html")  # that one is for servers alone
    assert len(paths) > 15
    tabs = {path: tab(browser, path.as_uri(), said) for path in paths}  # all at once: each is idle after half a second
    for path, page in tabs.items():
        page.wait_for_load_state("networkidle")  # or closing it would cut off its icon
        page.bring_to_front()
        assert page.locator("h1").count() == 1, path
        assert page.evaluate("document.documentElement.scrollWidth") <= WIDE, path
        assert page.evaluate(FIGURES_FIT), path
        page.set_viewport_size({"width": NARROW, "height": 900})
        assert page.evaluate(SETTLED_WIDTH) <= NARROW, path
    assert not said


def test_every_link_within_the_site_leads_to_a_file(site):
    pages = [path for path in site.rglob("*.html") if path.name != "404.html"]
    links = [(page, link) for page in pages for link in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text("utf-8"))]
    inside = [page.parent / unquote(link) for page, link in links if not re.match(r"[a-z]+:", link)]
    assert len(inside) > 1000
    assert not [path for path in inside if not path.exists()]
