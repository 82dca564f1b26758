"""The reference, the changelog and the version say what the code says."""

import ast
import inspect
import re
import tomllib

import pytest

import lsr
from tests.workspace import ROOT

API = (ROOT / "docs/reference/api.md").read_text(encoding="utf-8")
MEMBERS = re.findall(r"^::: (\S+)$", API, re.MULTILINE)
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def found(name):
    module, _, member = name.rpartition(".")
    return getattr(__import__(module, fromlist=[member]), member)


def test_every_public_name_has_an_entry():
    assert set(lsr.__all__) <= {name.rpartition(".")[2] for name in MEMBERS}


@pytest.mark.parametrize("name", MEMBERS)
def test_every_entry_has_a_docstring_of_its_own(name):
    (node,) = ast.parse(inspect.getsource(found(name))).body
    assert inspect.getdoc(found(name)) == ast.get_docstring(node)


@pytest.mark.parametrize("path", [*(ROOT / "docs").glob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])
def test_nothing_that_a_user_runs_imports_the_tests(path):
    imported = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [node for node in imported if re.search(r"\btests\b", ast.unparse(node))]


def test_the_first_page_names_the_versions_that_the_package_needs():
    (said,) = re.findall(r"^Python .*$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {"Python": project["requires-python"]} | dict(
        re.fullmatch(r"(\w+)(>=.*)", one).groups() for one in project["dependencies"]
    )
    for name, shown in re.findall(r"(\w+) (\d[.\d]*\d)", said):
        assert re.search(rf">={shown}\b", needed[name.lower() if name != "Python" else name]), name


def test_the_version_is_said_once():
    assert lsr.__version__ == VERSION
    newest = re.search(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert newest == VERSION
    assert not [path for path in (ROOT / "lsr").glob("*.py") if VERSION in path.read_text()]
