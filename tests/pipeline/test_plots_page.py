"""Pages of `dvc plots` draw their charts in a real browser without asking anybody for anything."""

import shutil
import sys

import pytest

from pipeline import plots_page
from pipeline.core.errors import UserError
from tests.browser import chromium, note_requests_elsewhere
from tests.repository import command
from tests.workspace import ROOT, read_yaml

CHARTS = sum(
    path.endswith((".csv", "curves"))
    for stage in read_yaml(ROOT / "dvc.yaml")["stages"].values()
    for plot in stage.get("plots", [])
    for path in plot
)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A clone without the local configuration: the committed reports, and what DVC needs to find them."""
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("reports", "pipeline"):
        shutil.copytree(ROOT / name, tmp_path / name)
    command(tmp_path, "git", "init", "--quiet")
    command(tmp_path, "git", "add", "--all")
    command(tmp_path, "git", "commit", "--quiet", "--message", "All")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


def opened(browser, path):
    """Open a page without a connection; return it, its requests that leave the disk, and its errors."""
    page = browser.new_context(offline=True).new_page()
    elsewhere, errors = [], []
    page.on("console", lambda said: said.type == "error" and errors.append(said.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    note_requests_elsewhere(page, elsewhere)
    page.goto(path.as_uri(), wait_until="load")  # idle would be too early: the library takes long to parse
    return page, elsewhere, errors


@pytest.mark.nightly
@pytest.mark.parametrize("words", [("show",), ("diff", "HEAD"), ("show", "--out", "else/where")])
def test_a_page_draws_all_charts_without_a_connection(words, repository, browser):
    plots_page.main([])
    (repository / "else").mkdir()
    curve = repository / "reports/train/curves/loss.csv"
    curve.write_text(curve.read_text().replace("\n2", "\n3"))  # else there is nothing to compare
    assert "WARNING" not in command(repository, "dvc", "plots", *words)  # of a column that is not there
    page, elsewhere, errors = opened(
        browser, repository / words[-1] / "index.html" if "--out" in words else repository / "dvc_plots/index.html"
    )
    least = CHARTS if words[0] == "show" else 1
    page.wait_for_function(f"document.querySelectorAll('canvas.marks, svg.marks').length >= {least}")
    assert not elsewhere + errors


def test_it_is_of_this_clone_alone(repository, capsys):
    plots_page.main([])
    assert "pages that need no connection" in capsys.readouterr().out
    assert command(repository, "git", "status", "--porcelain") == ""
    assert len(plots_page.page()) > 500_000
    assert [plots_page.page().count(word) for word in ("{plot_divs}", "{refresh_tag}", "{scripts}")] == [1, 1, 0]


def test_without_the_package_or_a_repository_one_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="plots: you are not inside of a DVC repository"):
        plots_page.install("{plot_divs}")
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(SystemExit) as left:
        plots_page.main([])
    assert left.value.code == 2
    line = "plots: vl-convert-python is not installed; install it with: pip install 'lsr-adapt[plots]'\n"
    assert capsys.readouterr().err == line
