"""What the README shows is what the repository does."""

import json
import re

import pytest
from ruamel.yaml import YAML

from pipeline import params
from pipeline.params.rows import DatasetRow, ModelRow
from tests.workspace import ROOT, read_yaml

SPEED = ROOT / "benchmarks/results/speed.json"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_result_table_is_that_of_the_committed_reports():
    found = json.loads((ROOT / "reports/evaluate/metrics.json").read_text())
    for name in ("accuracy", "f1"):
        line = f"| {name} | {found[name]:.3f} | {found[f'{name}_low']:.3f} to {found[f'{name}_high']:.3f} |"
        assert line in README
    for name in ("adapter_trained", "head_parameters", "base_parameters", "adapter_bytes", "examples"):
        assert f"{found[name]:,}" in README, name


def test_the_figures_of_speed_are_those_of_the_committed_run():
    parts = {name: part["figures"] for name, part in json.loads(SPEED.read_text(encoding="utf-8")).items()}
    (names, lines), *_ = re.findall(r"^\| tokens \| (LSR.*?) \|\n\|[-|]+\n((?:\|.*\n)+)", README, re.MULTILINE)
    ratios = {
        tuple(row[key] for key in ("width", "tokens", "dtype", "method")): row["both_ratio"] for row in parts["layer"]
    }
    for line in lines.splitlines():
        tokens, *cells = line.strip("| ").split(" | ")
        count, _, dtype = tokens.partition(", ")
        case = (768, int(count.replace(",", "")), {"": "float32", "bf16": "bfloat16"}[dtype])
        assert cells == [f"{ratios[*case, name]:#.3g}" for name in names.split(" | ")]
    most = max((row for row in parts["terms"] if "overhead" in row), key=lambda row: row["separation_rank"])
    assert f"{most['separation_rank']} terms add {most['overhead']:.2f} times" in README
    for row in parts["step"]:
        if row["method"] == "LSR r=4 s=16" and row["targets"] == "all linear":
            assert f"{row['speed_to_lora']:.2f}" in README
    for row in parts["race"]:
        assert re.search(rf"\b{row['seconds']:.0f} s\b", README), row


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
    assert {"lsr", "pipeline", "stages", "data", "benchmarks", "tests", "reports", "docs"} == set(names)
    assert all((ROOT / name).is_dir() for name in names)


@pytest.mark.parametrize("block", blocks("python"))
def test_the_python_that_is_shown_compiles(block):
    compile(block, "README.md", "exec")
