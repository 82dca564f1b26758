import csv
import json

import pytest
from matplotlib.image import imread

from benchmarks.init import report
from benchmarks.init.experiment import SETTINGS
from benchmarks.init.summary import Estimate, Row


def row(method, setting=SETTINGS[0].name, **changes):
    fields = Row(setting, method, 1920, 1920, 0.006, False, 5, 0.78, Estimate(0.8, 0.79, 0.81), Estimate(), 90, 17.5)
    return fields._replace(**changes)


TABLE = [
    row("random", at_edge=True, steps=None),
    row("row space", gain=Estimate(0.01, 0.002, 0.018)),
    row("gradient", gain=Estimate(0.01, -0.002, 0.022)),
    row("CP, from zero (removed)"),
    row("LoRA r=8", SETTINGS[1].name, test=Estimate(0.85), trained=73728),
]


def test_the_four_files_say_the_same(tmp_path):
    report.write(TABLE, tmp_path / "results")
    found = json.loads((tmp_path / "results/table.json").read_text())
    with (tmp_path / "results/table.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(found) == len(lines) == len(TABLE)
    for fields, line in zip(found, lines, strict=True):
        assert list(fields) == list(line)
        assert {name: "" if value is None else str(value) for name, value in fields.items()} == line
    assert found[1]["gain_low"] == 0.002
    assert found[-1]["test_low"] is None
    assert imread(tmp_path / "results/table.png").std() > 0


def test_two_reports_have_the_same_bytes(tmp_path):
    for folder in ("one", "two"):
        report.write(TABLE, tmp_path / folder)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize(
    "line",
    [
        "| method | movie-reviews r=4 s=1 | movie-reviews r=4 s=4 |",
        "| random | 0.800 ± 0.010 |  |",
        "| row space | **0.800** ± 0.010 |  |",  # its gain's interval excludes 0
        "| gradient | 0.800 ± 0.010 |  |",
        "| LoRA r=8 |  | 0.850 |",
        "### movie-reviews r=4 s=4",
        "| random | 1,920 | 0.006 (edge) | 0.800 (0.790 to 0.810) | – | – |",
        "| row space | 1,920 | 0.006 | 0.800 (0.790 to 0.810) | +0.010 (+0.002 to +0.018) | 90 |",
        "| LoRA r=8 | 73,728 | 0.006 | 0.850 | – | 90 |",
    ],
)
def test_the_markdown_holds(line):
    assert line in "\n".join(report.markdown(TABLE)).splitlines()


def test_what_is_removed_stands_last_in_the_overview():
    table = "\n".join(report.markdown(TABLE)).partition("\n\n###")[0].splitlines()
    assert table[-1] == "| CP, from zero (removed) | 0.800 ± 0.010 |  |"


def test_the_table_is_printed(tmp_path, capsys):
    report.write(TABLE, tmp_path)
    assert "row space" in capsys.readouterr().out
