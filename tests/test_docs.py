"""The page of the API, the changelog and the version say what the code says."""

import ast
import inspect
import re
import runpy
import tomllib

import pytest

import lsr
from tests.workspace import ROOT

API = runpy.run_path(str(ROOT / "docs/api.py"))
MEMBERS = [member for members in API["GROUPS"].values() for member in members]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_page_is_what_the_docstrings_say():
    assert (ROOT / "docs/api.md").read_text(encoding="utf-8") == API["page"](), "run: make docs"


def test_every_public_name_is_on_the_page():
    assert set(lsr.__all__) <= {member.__name__ for member in MEMBERS}


@pytest.mark.parametrize("member", MEMBERS)
def test_every_name_has_a_docstring_of_its_own(member):
    assert inspect.getdoc(member) == ast.get_docstring(API["_tree"](member))


def test_every_field_of_the_configuration_is_on_the_page():
    page = API["page"]()
    for name in lsr.LsrConfig.__annotations__:
        assert f"| `{name}` | `" in page


@pytest.mark.parametrize("path", [*(ROOT / "docs").glob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])
def test_nothing_that_a_user_runs_imports_the_tests(path):
    imported = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [node for node in imported if re.search(r"\btests\b", ast.unparse(node))]


def test_the_version_is_said_once():
    assert lsr.__version__ == VERSION
    newest = re.search(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert newest == VERSION
    assert not [path for path in (ROOT / "lsr").glob("*.py") if VERSION in path.read_text()]


def test_another_name_is_no_attribute():
    with pytest.raises(AttributeError, match="module 'lsr' has no attribute 'verson'"):
        lsr.verson  # noqa: B018
