"""The command: what it writes, that it writes the same again, and what it says of a mistake."""

import csv
import json
import os
import re
import subprocess
import sys
from contextlib import chdir
from hashlib import sha256

import pytest

from pipeline.compare import __main__ as command
from pipeline.compare import experiments, latex, markdown
from pipeline.compare.comparison import compare
from tests.pipeline.compare.records import cells, record, save
from tests.workspace import ROOT

METHODS = ("head alone", "LSR r=3", "LoRA r=1", "LoRA r=8")
WRITTEN = {
    "comparison.json", "comparison.md", "table.tex", "index.html",
    "results.csv", "trainings.csv", "rates.csv", "curves.csv", "ranks.csv",
    "pareto-trained.png", "pareto-file-bytes.png", "differences.png",
    "ranks.png", "rates-rte.png", "rates-stsb.png", "curves-rte.png", "curves-stsb.png",
}  # fmt: skip


def digests(folder):
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder in which the command has run, and what it printed."""
    folder = tmp_path_factory.mktemp("made")
    with chdir(folder):
        save(cells(METHODS, ("rte", "stsb"), (0, 1, 2)), tasks=("rte", "stsb"))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "1"}
    line = [sys.executable, "-m", "pipeline.compare", "--resamples", "200"]
    run = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return folder, run.stdout


def test_everything_is_written(made):
    folder, printed = made
    assert set(digests(folder / "reports/compare/small")) == WRITTEN
    lines = printed.splitlines()
    assert lines[0] == "reports/arena/small: 36 records"
    (title,) = [place for place, line in enumerate(lines) if line.startswith("small: average of 2 tasks")]
    assert "method | score | difference | p (Holm) | trained | dof | bytes | seconds | status" in lines[title]
    assert sum(line.startswith("  LoRA r=") for line in lines[title:]) == 3
    assert any("would add" in line for line in lines)
    assert lines[-1] == "written: reports/compare/small/index.html, with tables and plots beside it"


def test_the_same_records_give_the_same_bytes(made):
    folder, _ = made
    with chdir(folder):
        command.main(["small", "--output", "again", "--resamples", "200"])
    assert digests(folder / "again/small") == digests(folder / "reports/compare/small")


def test_the_tables_say_the_same(made):
    folder = made[0] / "reports/compare/small"
    found = json.loads((folder / "comparison.json").read_text())
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["task"], row["method"]) for row in rows] == [(one["task"], one["method"]) for one in found["results"]]
    for row, one in zip(rows, found["results"], strict=True):
        assert row["score"] == ("" if one["score"] is None else f"{one['score']:.6g}")
    (best,) = [row for row in rows if (row["task"], row["method"]) == ("average", "LoRA r=8")]
    shown = f"{float(best['score']):.2f} ± {float(best['score_high']) - float(best['score']):.2f}"
    text = (folder / "comparison.md").read_text()
    assert re.search(rf"^\| LoRA r=8 \| .* \| {shown} \| 73,728 \|$", text, re.MULTILINE)
    assert "best epoch on test (flatters)" in text


def test_the_latex_has_the_layout_of_papers(made):
    text = (made[0] / "reports/compare/small/table.tex").read_text()
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert rows[0] == r"method & rte & stsb & average & parameters \\"
    assert [row.split(" & ")[0] for row in rows[1:]] == ["head alone", "LSR r=3", "LoRA r=1", "LoRA r=8", "LoRA r=2"]
    assert {row.count(" & ") for row in rows} == {4}
    assert r"\textit{not run}" in rows[-1]
    assert text.count(r"\textbf{") == 3


def test_markdown_and_latex_print_names_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = r"50_% | {odd} \name & <b>"
    found = compare("small", [record(), record(name)], "LoRA r=1", 100)
    assert r"50\_\% \textbar{} \{odd\} \textbackslash{}name \& \textless{}b\textgreater{}" in latex.latex(found)
    assert r"| 50\_% \| {odd} \\name & \<b\> |" in markdown.markdown(found)


def failing(words, capsys):
    with pytest.raises(SystemExit) as end:
        command.main(words)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    start = "python -m pipeline.compare: "
    assert failing([], capsys) == f"{start}reports/arena has no records; run python -m pipeline.arena"
    for preset in ("small", "large"):
        save([record()], preset, tasks=())
    assert failing([], capsys) == f"{start}name a preset; presets: large, small"
    assert failing(["smal"], capsys) == f"{start}no records of 'smal'; did you mean small?; presets: large, small"
    assert "--baseline: small has no method 'VeRA'" in failing(["small", "--baseline", "VeRA"], capsys)
    assert "must be from 100 to 1,000,000, got 5" in failing(["small", "--resamples", "5"], capsys)
    assert failing(["--bad"], capsys) == f"{start}unrecognized arguments: --bad; see python -m pipeline.compare --help"
    (tmp_path / "reports/arena/empty").mkdir()
    (tmp_path / "reports/arena/empty/cells.jsonl").write_text('{"key": ')
    assert failing(["empty"], capsys) == "reports/arena/empty: no complete record; run python -m pipeline.arena empty"


def test_a_missing_package_is_one_line_with_the_extra(monkeypatch, capsys):
    monkeypatch.setattr(command, "find_spec", lambda name: None if name in ("altair", "itables") else object())
    assert failing([], capsys).endswith(
        "needs altair, itables: pip install -c constraints.txt -e '.[pipeline,compare]'"
    )


def test_without_a_repository_experiments_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save([record()], tasks=())
    assert failing(["--experiments", "--resamples", "100"], capsys).startswith("--experiments: ")


def experiment(seed=0, score=0.8, **changes):
    return {
        "Experiment": f"exp-{seed}", "rev": "abc", "score": score, "adapter_trained": 10.0, "seed": float(seed),
        "data": "rte", "model": "minilm", "adapter": "lora", "lora.r": 1.0, "lsr.alpha": 24.0,
        "pipeline/params": "0123", "artifacts/adapter": f"hash-{seed}",
    } | changes  # fmt: skip


def test_experiments_that_differ_in_the_seed_alone_are_one_row():
    found = experiments.rows([experiment(0, 0.8), experiment(1, 0.9), experiment(2, 0.5, **{"lora.r": 2.0})])
    assert [(row["differs"], row["seeds"], row["score"]) for row in found] == [
        ("lora.r=1.0", "0 1", pytest.approx(85)),
        ("lora.r=2.0", "2", pytest.approx(50)),
    ]
    assert found[0]["score_low"] < 85 < found[0]["score_high"]
    assert found[1]["score_low"] is None


def test_a_section_that_the_adapter_does_not_read_tells_nothing_apart_and_other_code_does():
    rows = experiments.rows([experiment(0), experiment(1, **{"lsr.alpha": 8.0})])
    assert [row["seeds"] for row in rows] == ["0 1"]
    assert len(experiments.rows([experiment(0), experiment(1, **{"pipeline/params": "4567"})])) == 2
