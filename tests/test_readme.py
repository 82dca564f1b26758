"""What the README shows is what the repository does."""

import json
import re

import pytest
from ruamel.yaml import YAML

from pipeline import params
from pipeline.rows import DatasetRow, ModelRow
from tests.workspace import ROOT, read_yaml

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_result_table_is_that_of_the_committed_reports():
    found = json.loads((ROOT / "reports/evaluate/metrics.json").read_text())
    for name in ("accuracy", "f1"):
        line = f"| {name} | {found[name]:.3f} | {found[f'{name}_low']:.3f} to {found[f'{name}_high']:.3f} |"
        assert line in README
    for name in ("adapter_parameters", "head_parameters", "base_parameters", "adapter_bytes", "examples"):
        assert f"{found[name]:,}" in README, name


def test_the_table_of_starts_is_that_of_the_committed_comparison():
    found = (ROOT / "benchmarks/results/init/table.md").read_text(encoding="utf-8")
    overview = re.search(r"^\| start \|.*?\n\n", found, re.DOTALL | re.MULTILINE)
    assert overview is not None
    assert overview.group() in README


@pytest.mark.parametrize("block", blocks("yaml"))
def test_a_row_that_is_shown_is_valid(block):
    (row,) = YAML(typ="safe", pure=True).load(block).values()
    (DatasetRow if "label" in row else ModelRow).model_validate(row)


@pytest.mark.parametrize("override", sorted(set(re.findall(r"-S ([\w./:-]+?)=", README))))
def test_an_override_that_is_shown_names_a_key(override):
    path, _, keys = override.rpartition(":")
    values = read_yaml(ROOT / (path or params.PARAMS))
    for key in keys.split("."):
        values = values[key]


def test_the_folders_of_the_layout_are_there():
    names = re.findall(r"^    (\w+)/ ", README, re.MULTILINE)
    assert {"lsr", "pipeline", "stages", "benchmarks", "tests", "reports", "docs"} == set(names)
    assert all((ROOT / name).is_dir() for name in names)


@pytest.mark.parametrize("block", blocks("python"))
def test_the_python_that_is_shown_compiles(block):
    compile(block, "README.md", "exec")
