"""The documentation builds without a warning, and a real browser opens every page of it from the disk."""

import re
import shutil
import sys

import pytest

from docs import plots
from tests.browser import NARROW, WIDE, chromium, tab
from tests.repository import command
from tests.workspace import ROOT

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


@pytest.mark.nightly
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


@pytest.fixture
def plotted(tmp_path, monkeypatch):
    """The page of `make plots`, of the committed reports."""
    shutil.copytree(ROOT / "reports", tmp_path / "reports")
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    plots.main()
    command(tmp_path, "dvc", "init", "--quiet", "--no-scm")
    command(tmp_path, "dvc", "plots", "show", "--html-template", plots.TEMPLATE)
    return tmp_path / "dvc_plots/index.html"


def test_the_page_of_plots_has_its_library_inside(plotted):
    text = plotted.read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?https?:""", text)
    assert text.count("vegaEmbed('#") >= 6


@pytest.mark.nightly
def test_it_draws_every_plot_without_a_request(plotted, browser):
    said = []
    page = tab(browser, plotted.as_uri(), said)
    drawn = "document.querySelectorAll('canvas.marks, svg.marks').length"
    page.wait_for_function(f"{drawn} >= {plotted.read_text(encoding='utf-8').count('vegaEmbed(')} - 1")
    assert not [line for line in said if "://" in line]  # vega has warnings of its own
