"""dvc.yaml says what the stages read: their views of params.yaml, and the modules that they import.

DVC would call a stale result up to date otherwise. The reference for imports is grimp's graph. The subject is inside
the product, so this file imports `pipeline.params`.
"""

import ast

import grimp
import pytest
from dvc.fs import LocalFileSystem
from dvc.repo import Repo

from pipeline import params
from tests.helpers import ROOT, read_yaml

STAGES = read_yaml(ROOT / "dvc.yaml")["stages"]
FIELDS = {"section": "${adapter}", "dataset": "data", "base_model": "model", "refit": "train.refit"}  # that are no keys
OF_USERS = {"data", "models", "pipeline/datasets.yaml", "pipeline/models.yaml"}
PACKAGES = ("lsr", "lsr_onnx", "lsr_server", "pipeline", "stages")


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)


def imported_files(graph, stage):
    """Return the files that a stage imports, directly or not, with the packages around them."""
    modules = set()
    new = {f"stages.{stage.replace('-', '_')}"}
    while new:
        modules |= new
        found = set()
        for name in new:
            found.add(name.rpartition(".")[0])
            found |= graph.find_modules_directly_imported_by(name)
        new = found - modules - {""}
    files = set()
    for name in modules:
        path = ROOT / name.replace(".", "/")
        files.add(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))
    return files


def has_code(path):
    """Whether a file holds more than a docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(not isinstance(statement, ast.Expr) for statement in tree.body)


def files_seen(dep):
    """Return the files that DVC sees in a dep."""
    ignored = Repo(str(ROOT)).dvcignore
    system = LocalFileSystem()
    files = set()
    root = ROOT / dep
    for path in [root, *root.rglob("*")]:
        is_ignored = ignored.is_ignored(system, str(path), ignore_subrepos=False)
        if path.is_file() and not is_ignored:
            files.add(path)
    return files


@pytest.mark.parametrize("stage", STAGES)
def test_the_params_of_a_stage_are_the_fields_of_its_view(stage):
    name = stage.title().replace("-", "")
    view = getattr(params, f"{name}View")
    expected = {FIELDS.get(field, field) for field in view.model_fields}
    assert set(STAGES[stage]["params"]) == expected


@pytest.mark.parametrize("stage", STAGES)
def test_the_deps_of_a_stage_have_every_file_that_it_imports_and_no_dep_is_idle(graph, stage):
    imported = imported_files(graph, stage)
    seen = set()
    for dep in STAGES[stage]["deps"]:
        if dep in OF_USERS or dep.startswith("artifacts/"):
            continue
        files = files_seen(dep)
        assert not imported.isdisjoint(files), dep
        seen |= files
    missing = imported - seen
    assert not [path for path in missing if has_code(path)]


@pytest.mark.parametrize("stage", STAGES)
def test_results_are_cached_and_reports_are_in_git(stage):
    declared = STAGES[stage]
    assert all(path.startswith("artifacts/") for path in declared["outs"])
    for entry in declared.get("metrics", []) + declared["plots"]:
        ((path, options),) = entry.items()
        assert path.startswith("reports/")
        assert options["cache"] is False
