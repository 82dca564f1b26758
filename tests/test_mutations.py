"""Whatever an adapter's folder, a data file or params.yaml holds is read, or refused in short lines."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import strategies as st

from lsr.__main__ import main
from pipeline import params
from pipeline.core.errors import UserError
from pipeline.data import datasets
from pipeline.params.dataset_row import DatasetRow
from tests import mutations, workspace
from tests.lsr.saved import CASES, save

COUNT = 200 if os.environ.get("LSR_NIGHTLY") == "1" else 20  # of a kind
SHORT, LONGEST = 21, 300  # lines of a refusal, and characters of each
COMMANDS = {
    "inspect": ("inspect", "adapter"),
    "export": ("export", "adapter", "--to", "lora", "-o", "out", "--force", "--base", "base"),
}
LABELS = [
    {"column": "label", "names": ["0", "1"]},
    {"column": "label", "low": -5.0, "high": 5.0},
    {"column": "label", "names": ["a", "b"], "above": 0.5, "margin": 0.1},
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An adapter beside its base, which nobody changes."""
    folder = tmp_path_factory.mktemp("whole")
    name, fields = CASES["patterns"]
    save(name, folder, **fields)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_a_harmed_adapter_is_read_or_refused_in_one_line(command, whole, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole / "base", "base")
    for what, changes in mutations.examples(mutations.adapters(whole / "adapter"), COUNT, sum(map(ord, command))):
        shutil.copytree(whole / "adapter", "adapter")
        mutations.harm(Path("adapter"), changes)
        code, said = main(COMMANDS[command]), capsys.readouterr().err
        assert code in (0, 2), what
        assert len(said.splitlines()) == (code != 0), what
        assert len(said) <= 301, what
        assert {path.name for path in tmp_path.iterdir()} <= {"adapter", "base", *({"out"} if code == 0 else ())}, what
        for name in ("adapter", "out"):
            shutil.rmtree(name, ignore_errors=True)


def test_a_file_that_may_be_broken_is_read_or_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("held.csv").write_text("text,label\nheld,0\nout,1\n")
    for number, (ending, content) in enumerate(mutations.examples(mutations.data_files(), 5 * COUNT)):
        files = {"train": f"train.{ending}", "validation": "held.csv", "test": "held.csv"}
        Path(files["train"]).write_bytes(content)
        label = LABELS[number % len(LABELS)]
        metrics = ["pearson"] if "low" in label else ["accuracy"]
        source = {"kind": "files", "files": files}
        row = DatasetRow.model_validate({"source": source, "label": label, "text": ["text"], "metrics": metrics})
        try:
            datasets.load(row, "mine")
        except UserError as error:
            (line,) = str(error).splitlines()
            assert len(line) <= 300
        assert Path(files["train"]).read_bytes() == content


@st.composite
def changed_params(draw, whole):
    """Draw params.yaml with one to three keys changed, removed or misspelt."""
    content = draw(mutations.fields(whole))
    section = draw(st.sampled_from(["", *(key for key, value in content.items() if isinstance(value, dict) and value)]))
    inner = content[section] if section else content
    if draw(st.booleans()):
        key = draw(st.sampled_from(sorted(inner)))
        inner[f"{key}s"] = inner.pop(key)
    return content


def test_whatever_params_hold_is_loaded_or_refused_in_short_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(workspace.make(tmp_path))
    whole = workspace.read_yaml(Path("params.yaml"))
    for content in mutations.examples(changed_params(whole), 2 * COUNT):
        workspace.write_yaml(Path("params.yaml"), content)
        before = Path("params.yaml").read_bytes()
        try:
            params.load(params.TrainView)
        except UserError as error:
            lines = str(error).splitlines()
            assert 0 < len(lines) <= SHORT
            assert all(0 < len(line) <= LONGEST for line in lines)
        assert Path("params.yaml").read_bytes() == before
