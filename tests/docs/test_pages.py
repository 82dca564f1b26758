"""What README, documentation, notebook, changelog and version say is what the repository does."""

import ast
import importlib
import inspect
import json
import re
import runpy
import subprocess
import tomllib
from pkgutil import resolve_name

import nbformat
import pytest
from peft import PeftConfig
from ruamel.yaml import YAML

import lsr
from docs import hooks, tables
from pipeline import params
from pipeline.arena import preset
from tests.kit import refused, write
from tests.workspace import ROOT, copy_committed, merged, read_yaml

PAGES = [path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]]
ALL = "\n".join(PAGES)


def blocks(language):
    return sorted(set(re.findall(rf"```{language}\n(.*?)```", ALL, re.DOTALL)))


@pytest.mark.parametrize("block", [block for block in blocks("yaml") if block.startswith("methods:")])
def test_methods_of_a_preset_that_are_shown_are_valid(block):
    for method in YAML(typ="safe", pure=True).load(block)["methods"].values():
        assert preset.Method.model_validate(method)


def test_the_reference_says_what_params_yaml_says():
    comments = re.findall(r"^.*\S # (.+)$", (ROOT / params.PARAMS).read_text(encoding="utf-8"), re.MULTILINE)
    reference = hooks.params()
    assert comments
    assert not [comment for comment in comments if comment not in reference]


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
        assert tables.made(name) == text, "run: python -m docs.tables"


def test_every_table_is_on_a_page():
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in tables.PAGES]
    assert {place[2] for text in texts for place in tables.PLACE.finditer(text)} == set(tables.TABLES)


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


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code(notebook) for output in cell.outputs]


def said(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


def form(cell):
    """What a cell prints without what may differ by machine: decimals, and the answers of the model."""
    return re.sub(r"\d+\.\d+|(positive|negative) +(right|wrong)", "", said(cell))


@pytest.mark.nightly
def test_every_cell_runs_without_a_warning():
    run = NOTEBOOK["execute"](NOTEBOOK["NOTEBOOK"])
    assert [output for output in outputs(run) if output.get("name") == "stderr"] == []
    assert [form(cell) for cell in code(run)] == [form(cell) for cell in code(COMMITTED)]
    assert run.metadata == COMMITTED.metadata


def test_its_links_lead_to_files():
    links = re.findall(r"\]\(([^)#:]+)\)", json.dumps([cell.source for cell in COMMITTED.cells]))
    assert links
    assert all((NOTEBOOK["NOTEBOOK"].parent / link).is_file() for link in links)
