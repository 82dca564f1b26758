"""The reference, the changelog and the version say what the code says."""

import ast
import inspect
import re
import tomllib
from pkgutil import resolve_name

import pytest

import lsr
from tests.workspace import ROOT

API = (ROOT / "docs/reference/api.md").read_text(encoding="utf-8")
MEMBERS = re.findall(r"^::: (\S+)$", API, re.MULTILINE)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_public_name_has_an_entry():
    assert set(lsr.__all__) <= {name.rpartition(".")[2] for name in MEMBERS}


@pytest.mark.parametrize("name", MEMBERS)
def test_every_entry_has_a_docstring_of_its_own(name):
    (node,) = ast.parse(inspect.getsource(resolve_name(name))).body
    assert inspect.getdoc(resolve_name(name)) == ast.get_docstring(node)


@pytest.mark.parametrize("path", [*(ROOT / "docs").glob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])
def test_nothing_that_a_user_runs_imports_the_tests(path):
    imported = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [node for node in imported if re.search(r"\btests\b", ast.unparse(node))]


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
