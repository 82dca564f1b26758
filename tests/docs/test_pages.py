"""What README and documentation show is what the repository does."""

import importlib.util
import json
import re
import shlex

import pytest
from ruamel.yaml import YAML

from lsr.__main__ import parser as lsr_parser
from pipeline import params
from pipeline.arena import preset
from pipeline.params.rows import DatasetRow, ModelRow
from pipeline.predict.__main__ import parser as predict_parser
from tests.torture import __main__ as torture
from tests.workspace import ROOT, read_yaml

SPEED = ROOT / "benchmarks/results/speed.json"
README = (ROOT / "README.md").read_text(encoding="utf-8")
COST = (ROOT / "docs/explanation/cost.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]}
ALL = "\n".join(PAGES.values())
LONGEST = 1400  # words: what a newcomer reads in five minutes


def blocks(language):
    return sorted(set(re.findall(rf"```{language}\n(.*?)```", ALL, re.DOTALL)))


def commands(start):
    """What follows `start` in the lines of code that begin with it, without their comments."""
    lines = re.findall(rf"^(?: {{4}})?{re.escape(start)} (.*)$", ALL, re.MULTILINE)
    return sorted({line.partition("  #")[0].rstrip() for line in lines})


def test_the_readme_is_short():
    assert len(README.split()) <= LONGEST


def test_the_result_table_is_that_of_the_committed_reports():
    found = json.loads((ROOT / "reports/evaluate/metrics.json").read_text())
    for name in ("accuracy", "f1"):
        line = f"| {name} | {found[name]:.3f} | {found[f'{name}_low']:.3f} to {found[f'{name}_high']:.3f} |"
        assert line in README
    for name in ("adapter_trained", "head_parameters", "base_parameters", "adapter_bytes", "examples"):
        assert f"{found[name]:,}" in README, name


def test_the_figures_of_torture_are_those_of_its_table():
    rows = re.findall(
        r"^\| ([\w-]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| [\d,]+ \|$", PAGES["promises.md"], re.MULTILINE
    )
    figures = {name: [int(cell.replace(",", "")) for cell in cells] for name, *cells in rows}
    total = figures.pop("all")
    assert figures.keys() == {case.name for case in torture.CASES}
    assert total == [sum(column) for column in zip(*figures.values(), strict=True)]
    tried, clean, failed = (f"{number:,}" for number in total)
    assert f"{tried} trials, {clean} clean, {failed} failed" in README


def test_the_figures_of_speed_are_those_of_the_committed_run():
    parts = {name: part["figures"] for name, part in json.loads(SPEED.read_text(encoding="utf-8")).items()}
    (names, lines), *_ = re.findall(r"^\| tokens \| (LSR.*?) \|\n\|[-|]+\n((?:\|.*\n)+)", COST, re.MULTILINE)
    ratios = {
        tuple(row[key] for key in ("width", "tokens", "dtype", "method")): row["both_ratio"] for row in parts["layer"]
    }
    for line in lines.splitlines():
        tokens, *cells = line.strip("| ").split(" | ")
        count, _, dtype = tokens.partition(", ")
        case = (768, int(count.replace(",", "")), {"": "float32", "bf16": "bfloat16"}[dtype])
        assert cells == [f"{ratios[*case, name]:#.3g}" for name in names.split(" | ")]
    most = max((row for row in parts["terms"] if "overhead" in row), key=lambda row: row["separation_rank"])
    assert f"{most['separation_rank']} terms add {most['overhead']:.2f} times" in COST
    for row in parts["step"]:
        if row["method"] == "LSR r=4 s=16" and row["targets"] == "all linear":
            assert f"{row['speed_to_lora']:.2f}" in COST
    for row in parts["race"]:
        assert re.search(rf"\b{row['seconds']:.0f} s\b", COST), row


@pytest.mark.parametrize("block", blocks("yaml"))
def test_a_row_that_is_shown_is_valid(block):
    ((name, row),) = YAML(typ="safe", pure=True).load(block).items()
    if name == "methods":  # of a preset of the arena
        assert [preset.Method.model_validate(method) for method in row.values()]
    else:
        (DatasetRow if "label" in row else ModelRow).model_validate(row)


@pytest.mark.parametrize("override", sorted(set(re.findall(r"-S '?([\w./:-]+?)=", ALL))))
def test_an_override_that_is_shown_names_a_key(override):
    path, _, keys = override.rpartition(":")
    values = read_yaml(ROOT / (path or params.PARAMS))
    for key in keys.split("."):
        values = values[key]


@pytest.mark.parametrize("line", commands("python -m lsr"))
def test_a_command_of_lsr_that_is_shown_is_one(line):
    lsr_parser().parse_args(shlex.split(line))


@pytest.mark.parametrize("line", commands("python -m pipeline.predict"))
def test_a_command_of_predict_that_is_shown_is_one(line):
    predict_parser().parse_args(shlex.split(line.partition(" < ")[0]))


@pytest.mark.parametrize(
    "module", sorted(set(re.findall(r"python -m ((?:lsr|pipeline|stages|benchmarks)[\w.]*)", ALL)))
)
def test_a_module_that_is_shown_is_there(module):
    assert importlib.util.find_spec(module)


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([\w-]+)(?=`|  )", ALL))))
def test_a_make_target_that_is_shown_is_there(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_folders_of_the_layout_are_there():
    names = re.findall(r"^    (\w+)/ ", PAGES["layout.md"], re.MULTILINE)
    assert {"lsr", "pipeline", "stages", "data", "benchmarks", "tests", "examples", "reports", "docs"} == set(names)
    assert all((ROOT / name).is_dir() for name in names)


@pytest.mark.parametrize("block", blocks("python"))
def test_the_python_that_is_shown_compiles(block):
    compile(block, "a page", "exec")
