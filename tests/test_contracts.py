"""dvc.yaml, params.yaml and the code say the same, or DVC would call a stale result up to date; claims have tests."""

import ast
import re
from pathlib import Path
from typing import get_args

import grimp
import pytest
from dvc.fs import LocalFileSystem
from dvc.repo import Repo

from pipeline import params
from pipeline.core import artifacts
from pipeline.data import inputs
from pipeline.data.content import MODELS, WATCHED
from tests.workspace import ROOT, read_yaml

# What the fields of a view that are no keys are in dvc.yaml. The stage `tokenize` depends on the tables as files and
# records the chosen rows, on which the others depend: as params, each key would be a column of `dvc exp show`.
DECLARED = {"section": "${adapter}", "dataset": "data", "base_model": "model", "refit": "train.refit"}
DVC = read_yaml(ROOT / "dvc.yaml")
STAGES = {name: stage for name, stage in DVC["stages"].items() if "outs" in stage}
OURS = ("lsr", "lsr_onnx", "lsr_server", "pipeline", "stages", "benchmarks")
REGISTRIES = [table.built_in.as_posix() for table in params.REGISTRIES.values()]
IGNORED = Repo(str(ROOT)).dvcignore
# A participle as the first word of a function's name leaves open what the function does: `joined` does not say what it
# joins, `join_banks` does. Words in -ed are participles, too, but for those of the second list.
PARTICIPLES = """
begun bound broken brought built caught chosen done drawn driven fallen felt forgotten found frozen given gone got grown
had heard held hidden kept known laid led lent lost made meant met paid risen said seen sent shaken shown sold sought
spent spoken stolen stood swept taken taught thought told torn understood unknown won worn wound written
applying asking being counting determining doing finding fitting giving having holding joining keeping knowing making
passing reading replacing running saying selecting showing taking telling using working writing
"""
NOT_PARTICIPLES = ("bed", "embed", "exceed", "feed", "need", "proceed", "red", "seed", "speed", "succeed")
NAMED_BY_PARTICIPLES = set()  # exceptions, of which there are none
IMPORTS = grimp.build_graph(*OURS, exclude_type_checking_imports=True, cache_dir=None)


def view_of(stage):
    return getattr(params, stage.title().replace("-", "") + "View")


def declared_params(stage):
    for entry in STAGES[stage].get("params", []):
        yield from (
            [entry] if isinstance(entry, str) else (f"{path}:{key}" for path, keys in entry.items() for key in keys)
        )


def has_code(path):
    """Whether a file holds more than the docstring of its folder."""
    return any(not isinstance(node, ast.Expr) for node in ast.parse(path.read_text()).body)


def closure(stage):
    """All files of ours that a stage imports, directly or not, and those of the folders in which they are."""
    actual = set()
    new = {f"stages.{stage.replace('-', '_')}"}
    while new:
        actual |= new
        around = {name.rpartition(".")[0] for name in new} - {""}
        new = around.union(*map(IMPORTS.find_modules_directly_imported_by, new)) - actual
    bases = (ROOT.joinpath(*name.split(".")) for name in actual)
    return {base / "__init__.py" if base.is_dir() else base.with_suffix(".py") for base in bases}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_declares_exactly_what_its_view_sees(stage):
    expected = {DECLARED.get(field, field) for field in view_of(stage).model_fields}
    assert set(declared_params(stage)) == expected


def below(dep):
    """The files that DVC sees in a dep."""
    files = [path for path in (ROOT / dep, *(ROOT / dep).rglob("*")) if path.is_file()]
    return {path for path in files if not IGNORED.is_ignored(LocalFileSystem(), str(path), ignore_subrepos=False)}


def deps_of_code(stage):
    return [
        dep for dep in STAGES[stage]["deps"] if not dep.startswith("artifacts/") and dep not in (*WATCHED, *REGISTRIES)
    ]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_every_file_that_it_imports(stage):
    used = {path for path in closure(stage) if has_code(path)}
    assert used - set().union(*map(below, deps_of_code(stage))) == set()


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_no_dep_of_which_it_imports_nothing(stage):
    used = closure(stage)
    assert [dep for dep in deps_of_code(stage) if used.isdisjoint(below(dep))] == []


def test_every_file_in_a_dep_of_code_is_imported_by_a_stage():
    used = set().union(*(closure(stage) for stage in STAGES))
    seen = set().union(*(below(dep) for stage in STAGES for dep in deps_of_code(stage)))
    assert {path for path in seen if path.suffix != ".py" or has_code(path)} - used == {ROOT / "lsr/py.typed"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_compares_and_a_training_resumes_by_the_files_that_dvc_sees(stage):
    seen = {path for name, path in inputs.files(stage) if not name.startswith("artifacts/")}
    assert seen == set().union(*map(below, deps_of_code(stage)))
    assert {path.as_posix() for path in inputs.outputs(stage)} == {path for _, path, _ in outputs(stage)}


def test_the_tables_and_the_folders_of_users_are_there_and_watched():
    assert {*WATCHED, *REGISTRIES} <= set(STAGES["tokenize"]["deps"])
    assert MODELS in STAGES["factorize-init"]["deps"]
    assert all((ROOT / folder / "README.md").is_file() for folder in WATCHED)


def outputs(stage):
    for kind in ("outs", "metrics", "plots"):
        for entry in STAGES[stage].get(kind, []):
            path, options = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
            yield kind, path, options


@pytest.mark.parametrize("stage", STAGES)
def test_metrics_and_plots_go_to_git_and_artifacts_to_the_cache(stage):
    for kind, path, options in outputs(stage):
        # DVC keeps no run of a stage with a plain out that is not cached: nothing could be restored.
        assert (options.get("cache") is False) == (kind != "outs"), path
        assert path.startswith("artifacts/" if kind == "outs" else "reports/")


def test_every_output_is_a_path_of_pipeline_artifacts():
    known = {path for path in vars(artifacts).values() if isinstance(path, Path)}
    assert {Path(path) for stage in STAGES for _, path, _ in outputs(stage)} == known - {artifacts.ARENA}


def test_initializations_are_those_of_the_library_and_look_at_examples_where_its_do():
    from lsr.init import INITIALIZATIONS
    from pipeline.params.sections import READ, SHORT_RUNS, LsrParams

    words, _ = get_args(LsrParams.model_fields["init"].annotation)  # or another adapter
    assert get_args(words) == tuple(INITIALIZATIONS)
    assert set(READ) == {word for word, one in INITIALIZATIONS.items() if one.read}
    assert set(SHORT_RUNS) == {word for word, one in INITIALIZATIONS.items() if one.reads == "update"}


def trees(*folders):
    """Yield each file of Python code below folders with its syntax tree."""
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def private_names():
    """The names with an underscore in front that our packages define."""
    defined = set()
    for _, tree in trees(*OURS):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                defined.add(node.id if isinstance(node, ast.Name) else node.attr)
    return {name for name in defined if re.match("_[^_]", name)}


def names_read(node):
    """Yield the names of other modules and of objects that a node of a test's syntax tree reads or replaces."""
    if isinstance(node, ast.ImportFrom):
        for alias in node.names:
            yield alias.name
    elif isinstance(node, ast.Attribute) and ast.unparse(node.value) != "self":
        yield node.attr
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("setattr", "getattr", "delattr", "object")):
        for argument in node.args:
            if isinstance(argument, ast.Constant):
                yield str(argument.value).rpartition(".")[2]


def test_no_test_reads_a_private_name_of_ours():
    private = private_names()
    assert len(private) > 200
    read = set()
    for path, tree in trees("tests", "docs"):
        for node in ast.walk(tree):
            for name in private.intersection(names_read(node)):
                read.add(f"{path.relative_to(ROOT)}:{node.lineno} {name}")
    assert not read


def is_property(function):
    return any("property" in ast.unparse(decorator) for decorator in function.decorator_list)


def is_participle(word):
    return word in PARTICIPLES.split() or (word.endswith("ed") and word not in NOT_PARTICIPLES)


def test_functions_are_named_by_verbs_and_never_by_participles():
    names = set()
    for _, tree in trees(*OURS):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_property(node):
                names.add(node.name)
    assert len(names) > 1000
    assert {name for name in names if is_participle(name.lstrip("_").partition("_")[0])} == NAMED_BY_PARTICIPLES


def test_every_test_that_a_claim_names_is_there():
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "tests/README.md").read_text(encoding="utf-8"))
    assert len(named) > 70
    functions = set()
    for path, tree in trees("tests"):
        where = path.relative_to(ROOT / "tests").as_posix()
        functions.update((where, node.name) for node in tree.body if isinstance(node, ast.FunctionDef))
    assert set(named) <= functions


def test_each_cell_of_the_table_of_references_names_a_test_or_says_why_there_is_none():
    section = (ROOT / "tests/README.md").read_text(encoding="utf-8").partition("## References of results")[2]
    section = section.partition("\n## ")[0]
    lines = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line] for line in lines if set("".join(line)) != {"-"}]
    words = {word for word, *tests in rows if len(tests) == 1} - {"word"}
    cells = [cell for _, _, *cells in rows if len(cells) > 1 for cell in cells if cells[0] != "architecture"]
    named = {word for cell in cells if not cell.startswith("no: ") for word in cell.split(", ")}
    assert len(cells) > 60
    assert named == words
