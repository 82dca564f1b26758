"""What README, documentation, notebook, changelog and version say is what is there; and a browser opens the site."""

import ast
import importlib
import inspect
import json
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from argparse import SUPPRESS, ArgumentParser
from pkgutil import resolve_name

import nbformat
import pandas as pd
import pytest
from peft import PeftConfig
from ruamel.yaml import YAML
from scipy import stats
from vl_convert import vegalite_to_svg

import lsr
from docs import commands, messages, plots, tables
from lsr.__main__ import COMMANDS
from pipeline import params
from pipeline.arena import preset
from pipeline.core import artifacts
from tests.browser import NARROW, WIDE, chromium, tab
from tests.kit import refused, write
from tests.repository import command
from tests.workspace import ROOT, copy_committed, merged, read_yaml

PAGES = [path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]]
ALL = "\n".join(PAGES)


def blocks(language):
    return sorted(set(re.findall(rf"```{language}\n(.*?)```", ALL, re.DOTALL)))


def test_the_site_is_built_without_a_warning(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    run = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "reference/api.html").is_file()


@pytest.mark.parametrize("block", [block for block in blocks("yaml") if block.startswith("methods:")])
def test_methods_of_a_preset_that_are_shown_are_valid(block):
    for method in YAML(typ="safe", pure=True).load(block)["methods"].values():
        assert preset.Method.model_validate(method)


def test_the_reference_says_what_params_yaml_says():
    comments = re.findall(r"^.*\S # (.+)$", (ROOT / params.PARAMS).read_text(encoding="utf-8"), re.MULTILINE)
    reference = (ROOT / "docs/reference/params.md").read_text(encoding="utf-8")
    assert comments
    assert not [comment for comment in comments if comment not in reference]


@pytest.mark.parametrize("name", [*COMMANDS, *commands.MODULES])
def test_help_is_written_for_users(name, monkeypatch):
    """One to three sentences, and for each option what it is, and its default or that it is required."""
    shown = []
    monkeypatch.setattr(ArgumentParser, "print_help", lambda parser: shown.append(parser))
    ask = commands.get_subcommand_help if name in COMMANDS else commands.get_module_help
    ask(name)
    (parser,) = shown
    sentences = re.findall(r"[.;](?= [A-Z]|$)", parser.description)
    assert 1 <= len(sentences) <= 3, parser.description
    assert parser.description[0].isupper()
    assert parser.description.endswith(".")
    for action in parser._actions:
        assert action.help, action.dest
        assert len(action.help.split()) > 1 or action.required, f"{action.dest}: {action.help}"
        if action.default not in (None, SUPPRESS, False, (), []):
            assert "default: " in action.help, f"{action.dest}: {action.help}"


def same_for_every_python(text):
    """Return the text of --help without what differs between versions of argparse: line breaks and a repeated OUT."""
    return re.sub(r"\s+", " ", text.replace("-o OUT, --output", "-o, --output"))


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([\w-]+)(?=`|  )", ALL))))
def test_a_make_target_that_is_shown_is_there(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_python_that_is_shown_compiles():
    for block in blocks("python"):
        compile(block, "a page", "exec")


def test_the_python_of_the_first_page_runs_as_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    write("readme.py", block)
    runpy.run_path("readme.py")
    assert PeftConfig.from_pretrained("lora").peft_type == "LORA"


def test_the_message_that_is_shown_is_what_the_command_prints(tmp_path, monkeypatch):
    shown = re.findall(r"^```console\n\$ python (.*)\n(.*)\n```$", ALL, re.MULTILINE)
    assert len(shown) == 1  # others would need a mistake of their own
    copy_committed(tmp_path)
    write(tmp_path / "params.yaml", merged(read_yaml(ROOT / "params.yaml"), {"lsr": {"separation_rank": 0}}))
    command, message = shown[0]
    monkeypatch.chdir(tmp_path)
    main = importlib.import_module(command.removeprefix("-m ")).main
    assert refused(main, []) == message


def committed(path):
    return subprocess.run(["git", "show", f"HEAD:{path}"], cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", [*tables.PAGES, tables.PICTURE])
def test_what_a_page_shows_is_what_the_reports_give(name, monkeypatch):
    text = (ROOT / name).read_text(encoding="utf-8")
    if tables.made(name) != text:  # reports that a reader's own `make repro` or `make bench` has written are no mistake
        monkeypatch.setattr(tables, "read", committed)
        made = tables.made(name)
        if name == "docs/reference/commands.md" and sys.version_info >= (3, 13):
            made, text = map(same_for_every_python, (made, text))
        assert made == text, "run: python -m docs.tables"


def test_every_table_is_on_a_page():
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in tables.PAGES]
    assert {place["name"] for text in texts for place in tables.PLACE.finditer(text)} == set(tables.TABLES)


@pytest.mark.parametrize(("head", "name"), [("shared", "tenants ignored"), ("auto", "shared head with deviations")])
def test_accuracies_on_unseen_domains_have_students_interval_over_pairs(head, name):
    known = json.loads((ROOT / "benchmarks/results/unseen_domains.json").read_text(encoding="utf-8"))[head]
    by_seed = [{pair: scores["model"]["20"] for pair, scores in of_seed.items()} for of_seed in known.values()]
    by_pair = pd.DataFrame(by_seed).mean() * 100
    low, high = stats.t.interval(0.95, len(by_pair) - 1, by_pair.mean(), stats.sem(by_pair))
    (row,) = [line for line in tables.unseen_domains() if line.startswith(f"| {name} |")]
    assert f"| {by_pair.mean():.1f} ± {(high - low) / 2:.1f} |" in row


WRITTEN_BY_A_PROGRAM = "docs/reference/capabilities.md"
NOT_PROSE = re.compile(
    r"<!-- (?:figures|table): .*?<!-- end -->|^```.*?^```$|^ {4}[^\n]+$|<!--.*?-->", re.MULTILINE | re.DOTALL
)


def words(page):
    """How many words a page has outside of code and of tables that a program fills."""
    return len(re.findall(r"\S*\w\S*", NOT_PROSE.sub("", page.read_text(encoding="utf-8"))))


def test_the_first_screen_of_the_readme_is_short():
    page = ROOT / "README.md"
    first_screen, heading, _ = page.read_text(encoding="utf-8").partition("## Your own data\n")
    assert heading
    assert len(first_screen.splitlines()) <= 45
    assert words(page) <= 1_100


def test_the_documentation_is_short():
    pages = [path for path in (ROOT / "docs").rglob("*.md") if path != ROOT / WRITTEN_BY_A_PROGRAM]
    assert words(ROOT / "docs/explanation/results.md") <= 1_500
    assert sum(map(words, pages)) <= 18_000


API = (ROOT / "docs/reference/api.md").read_text(encoding="utf-8")
MEMBERS = re.findall(r"^::: (\S+)$", API, re.MULTILINE)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_public_name_has_an_entry():
    assert set(lsr.__all__) <= {name.rpartition(".")[2] for name in MEMBERS}


@pytest.mark.parametrize("name", MEMBERS)
def test_every_entry_has_a_docstring_of_its_own(name):
    (node,) = ast.parse(inspect.getsource(resolve_name(name))).body
    assert inspect.getdoc(resolve_name(name)) == ast.get_docstring(node)


def test_the_first_page_names_the_versions_that_the_package_needs():
    (said,) = re.findall(r"^Python .*$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    needed = dict(re.fullmatch(r"(\w+)(>=.*)", one).groups() for one in PROJECT["dependencies"])
    needed["Python"] = PROJECT["requires-python"]
    for name, shown in re.findall(r"(\w+) (\d[.\d]*\d)", said):
        assert re.search(rf">={shown}\b", needed[name.lower() if name != "Python" else name]), name


def test_the_version_is_said_once():
    version = PROJECT["version"]
    assert lsr.__version__ == version
    newest = re.search(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert newest == version
    assert not [path for path in (ROOT / "lsr").glob("*.py") if version in path.read_text()]


NOTEBOOK = runpy.run_path(str(ROOT / "docs/notebook.py"))
COMMITTED = nbformat.read(NOTEBOOK["NOTEBOOK"], as_version=4)


def outputs(notebook):
    """What the cells of code have printed."""
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def form(printed):
    """What a cell prints without what may differ by machine: decimals, and the answers of the model."""
    text = "".join(output.get("text", "") for output in printed)
    return re.sub(r"\d+\.\d+|(positive|negative) +(right|wrong)", "", text)


@pytest.mark.nightly
def test_every_cell_runs_without_a_warning():
    run = NOTEBOOK["execute"](NOTEBOOK["NOTEBOOK"])
    assert [one for printed in outputs(run) for one in printed if one.get("name") == "stderr"] == []
    assert [form(printed) for printed in outputs(run)] == [form(printed) for printed in outputs(COMMITTED)]
    assert run.metadata == COMMITTED.metadata


def test_its_links_lead_to_files():
    links = re.findall(r"\]\(([^)#:]+)\)", json.dumps([cell.source for cell in COMMITTED.cells]))
    assert links
    assert all((NOTEBOOK["NOTEBOOK"].parent / link).is_file() for link in links)


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


SCORES_OF_HELD_OUT = [
    {"labels": count, "method": method, "score": 0.8, "low": 0.7, "high": 0.9, "tenants": 4}
    for count in (0, 5, 10, 20, 60)
    for method in ("fitted head", "own regression")
    if count or method == "fitted head"
]


@pytest.fixture
def plotted(tmp_path, monkeypatch):
    """The page of `make plots`, of the committed reports and a few tenants that a run held out."""
    shutil.copytree(ROOT / "reports", tmp_path / "reports")
    write(tmp_path / artifacts.EVALUATE_HELD_OUT, SCORES_OF_HELD_OUT)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    plots.main()
    command(tmp_path, "dvc", "init", "--quiet", "--no-scm")
    shutil.copytree(ROOT / ".dvc/plots", tmp_path / ".dvc/plots", dirs_exist_ok=True)
    command(tmp_path, "dvc", "plots", "show", "--html-template", plots.TEMPLATE)
    return tmp_path / "dvc_plots/index.html"


def test_the_page_of_plots_has_its_library_inside(plotted):
    text = plotted.read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?https?:""", text)
    assert text.count("vegaEmbed('#") >= 6


def specifications_in(page):
    text = page.read_text(encoding="utf-8")
    return [json.loads(found) for found in re.findall(r"var spec = (.*?);\s*vegaEmbed", text, re.DOTALL)]


def test_the_legend_of_calibration_tells_its_lines_apart(plotted):
    (of_calibration,) = [one for one in specifications_in(plotted) if '"field": "head"' in json.dumps(one)]
    svg = vegalite_to_svg(of_calibration)
    symbols = re.findall(r'<g class="mark-symbol role-legend-symbol".*?</g>', svg, re.DOTALL)
    of_lines = [symbol for symbol in symbols if "stroke-dasharray" in symbol]
    assert len(of_lines) == 2
    assert all(' stroke="' in symbol for symbol in of_lines)


def test_titles_of_plots_differ_and_names_of_layers_are_whole(plotted):
    specifications = specifications_in(plotted)
    titles = [specification["title"]["text"] for specification in specifications]
    assert len(set(titles)) == len(titles) > 8
    (of_layers,) = [one for one in specifications if "energy" in json.dumps(one.get("encoding"))]
    drawn = vegalite_to_svg(of_layers)
    names = pd.read_csv(ROOT / artifacts.FACTORIZE_START)["layer"]
    assert len(names) > 1
    assert not [name for name in names if f">{name}<" not in drawn]


def test_scores_of_held_out_tenants_are_drawn_by_number_of_labels_with_intervals(plotted):
    text = plotted.read_text(encoding="utf-8")
    specifications = [json.loads(found) for found in re.findall(r"var spec = (.*?);\s*vegaEmbed", text, re.DOTALL)]
    (of_held_out,) = [one for one in specifications if "labeled texts per tenant" in json.dumps(one)]
    drawn = vegalite_to_svg(of_held_out)
    for method in ("fitted head", "own regression"):
        assert f">{method}<" in drawn
    ends = re.findall(r'aria-label="labeled texts per tenant: (\d+); [^"]*0.7; high: 0.9;', drawn)
    assert ends == [str(row["labels"]) for row in SCORES_OF_HELD_OUT]
    places = {
        int(count): float(x) for count, x in re.findall(r"tenant: (\d+); [^>]*high[^>]*translate\(([\d.]+),", drawn)
    }
    assert sorted(places, key=places.get) == [0, 5, 10, 20, 60]


@pytest.mark.nightly
def test_it_draws_every_plot_without_a_request(plotted, browser):
    said = []
    page = tab(browser, plotted.as_uri(), said)
    drawn = "document.querySelectorAll('canvas.marks, svg.marks').length"
    page.wait_for_function(f"{drawn} >= {plotted.read_text(encoding='utf-8').count('vegaEmbed(')} - 1")
    assert not [line for line in said if "://" in line]  # vega has warnings of its own


def test_messages_are_found_with_their_parts_and_values():
    source = """
BOUND = 'at most 3'
def check(value):
    needed = f'needed: {BOUND}'
    raise UserError(f'{value}: too large; {needed}, got {value:,}')
class Reader:
    def read(self):
        console.warn('a line ' + 'of two parts')
        needed = other()
        raise KeyError('not a message of ours')
"""
    found = ["{value}: too large; needed: at most 3, got {value}", "a line of two parts"]
    assert list(messages.find_messages(source)) == found
