"""A stage ends only if its inputs are what it has read: parameters, rows, local files, code, and earlier outputs.

What is compared with is a run that nobody disturbs.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import params
from pipeline.core import artifacts
from pipeline.data import inputs
from pipeline.stage import run as start_stage
from pipeline.training import run as training
from stages import tokenize
from tests import workspace
from tests.kit import digests, edit, ended, write
from tests.repository import add_row
from tests.stages.running import EVALUATE, FACTORIZE, TOKENIZE, TRAIN, run

MODEL = "tiny-roberta/config.json"
STAGES = {"tokenize": TOKENIZE, "factorize-init": FACTORIZE, "train": TRAIN, "evaluate": EVALUATE}
PARAMETERS = {
    "tokenize": ("tokenize", "max_length", 20, "tokenize.max_length: changed from 24 to 20"),
    "factorize-init": ("lsr", "alpha", 7, "lsr.alpha: changed from 16 to 7"),
    "train": ("train", "head_learning_rate", 0.1, "train.head_learning_rate: changed from 0.002 to 0.1"),
    "evaluate": ("evaluate", "resamples", 101, "evaluate.resamples: changed from 2000 to 101"),
}


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch):
    """Stages take none, and would read those of pytest."""
    monkeypatch.setattr(sys, "argv", ["stage"])


def change_parameter(stage):
    section, key, value, says = PARAMETERS[stage]
    workspace.change(**{section: {key: value}})
    return f"params.yaml: {says}"


def change_data(_):
    name = "glue/mrpc/train-00000.parquet"
    Path(name).write_bytes(Path(name).read_bytes() + b" ")
    return f"{name}: changed"


def change_data_row(_):
    path = Path("pipeline/datasets.yaml")
    rows = workspace.read_yaml(path)
    write(path, rows | {"glue": rows["glue"] | {"metrics": ["accuracy"]}})
    return "pipeline/datasets.yaml: glue: changed"


def remove_model_row(_):
    path = Path("pipeline/models.yaml")
    rows = workspace.read_yaml(path)
    write(path, {name: row for name, row in rows.items() if name != "tiny"})
    return "pipeline/models.yaml: tiny: changed"


def change_model(_):
    edit(MODEL, architectures=["another"])
    return f"{MODEL}: changed"


def change_file(name):
    def change(_):
        path = Path(name)
        path.write_bytes(path.read_bytes() + b" ")
        return f"{name}: changed"

    change.__name__ = f"change_{name}"
    return change


def add_file(_):
    write("artifacts/init/added.txt", "late")
    return "artifacts/init/added.txt: changed"


TOKENS, ADAPTER = "artifacts/tokens/train.arrow", "artifacts/adapter/adapter_model.safetensors"
EDITS = [
    *((stage, change_parameter) for stage in STAGES),
    *((stage, change_data_row) for stage in STAGES),
    *((stage, change_model) for stage in STAGES),
    ("tokenize", change_data),
    ("train", remove_model_row),
    ("factorize-init", change_file(TOKENS)),
    ("train", change_file(TOKENS)),
    ("train", add_file),
    ("train", change_file("artifacts/inputs.json")),
    ("evaluate", change_file(ADAPTER)),
]


def disturbed(stage, disturb, *, early=False):
    """Run a stage as `python -m stages.STAGE` does, and `disturb` when it has written its outputs or, early, begun."""
    module, view = STAGES[stage]

    def main(loaded):
        if early:
            disturb()
        module.main(loaded)
        if not early:
            disturb()

    main.__module__ = module.__name__
    return ended(start_stage, main, view, "a stage")


def written(stage):
    return digests(*(path for path in inputs.outputs(stage) if path.is_dir())) | {
        path.as_posix(): path.read_bytes() for path in inputs.outputs(stage) if path.is_file()
    }


def undo(stage, before):
    """Put all files but the outputs of a stage back as they were in a copy of the folder."""
    outputs = inputs.outputs(stage)
    for name in digests(before):
        path = Path(name).relative_to(before)
        if not any(path.is_relative_to(output) for output in outputs):
            write(path, Path(name).read_bytes())
    Path("artifacts/init/added.txt").unlink(missing_ok=True)


@pytest.mark.parametrize(("stage", "change"), EDITS, ids=lambda value: getattr(value, "__name__", value))
def test_a_stage_whose_input_changes_while_it_runs_ends_with_a_line_and_without_outputs(after, stage, change, tmp_path):
    after()
    says = []
    before = shutil.copytree(Path(), tmp_path / "before", ignore=shutil.ignore_patterns("before"))
    status, _, text = disturbed(stage, lambda: says.append(change(stage)))
    assert (status, len(says)) == (2, 1), text
    assert text.startswith(says[0])
    assert f" while the stage {stage} ran" in text
    assert text.count("\n") == 1
    assert not any(path.exists() for path in inputs.outputs(stage))
    undo(stage, before)
    assert disturbed(stage, lambda: None)[0] is None
    again = written(stage)
    os.chdir(before)
    assert again == written(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_stage_does_not_read_may_change_while_it_runs(after, stage):
    after()

    def disturb():
        write("data/other.csv", "text,label\n")
        write("models/other/config.json", "{}")
        workspace.change(lora={"r": 5})
        rows = workspace.read_yaml(Path("pipeline/datasets.yaml"))
        write("pipeline/datasets.yaml", rows | {"other": rows["glue"]})

    assert disturbed(stage, disturb)[0] is None
    assert all(path.exists() for path in inputs.outputs(stage))


def test_a_training_whose_parameters_changed_meanwhile_goes_on_from_its_last_epoch(after, monkeypatch):
    after()
    run(TRAIN)
    expected = written("train")
    status, _, text = disturbed("train", lambda: workspace.change(train={"epochs": 9}), early=True)
    assert (status, "train.epochs: changed from 2 to 9" in text) == (2, True)
    (checkpoints,) = (path for path in Path(".checkpoints").iterdir() if path.is_dir())
    workspace.change(train={"epochs": 2})
    steps = []
    monkeypatch.setattr(training.Progress, "on_step_end", lambda *_, **__: steps.append(1))
    status, _, text = ended(start_stage, TRAIN[0].main, TRAIN[1], "a stage")
    assert (status, steps) == (None, []), text
    assert written("train") == expected
    assert not checkpoints.exists()


def test_rows_and_models_that_are_not_those_of_the_tokens_are_refused(after):
    after()
    change_data_row("train")
    status, _, text = ended(start_stage, TRAIN[0].main, TRAIN[1], "a stage")
    assert (status, text.count("\n")) == (2, 1)
    assert text.startswith("data: glue: not what the stage tokenize has read; run dvc repro")
    assert artifacts.ADAPTER.exists()  # nothing has run, so nothing is removed


LATE = """
import sys

class Late:
    def find_spec(self, name, *_):
        if name == "{before}":
            with open("{edited}", "a") as file:
                file.write("# edited while it is imported\\n")
            sys.meta_path.remove(self)

sys.meta_path.insert(0, Late())
"""


LATER = pytest.param("pipeline.data.base_models", marks=pytest.mark.nightly)


@pytest.mark.parametrize("before", ["pipeline.data.datasets", LATER])
def test_code_that_is_edited_after_it_was_imported_and_before_the_stage_has_begun_is_noticed(after, tmp_path, before):
    folder = after()
    for name in ("lsr", "stages"):
        shutil.copytree(workspace.ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (workspace.ROOT / "pipeline").rglob("*.py"):
        write(folder / path.relative_to(workspace.ROOT), path.read_bytes())
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(workspace.ROOT / name, folder)
    write(folder / "late/sitecustomize.py", LATE.format(before=before, edited="pipeline/tasks/cells.py"))
    environment = os.environ | {"PYTHONPATH": str(folder / "late")}
    words = [sys.executable, "-m", "stages.tokenize"]
    ran = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 2, ran.stdout + ran.stderr
    assert ran.stderr.startswith("pipeline/tasks/cells.py: changed while the stage tokenize ran; ")
    assert not any((folder / path).exists() for path in inputs.outputs("tokenize"))
    environment["PYTHONPATH"] = ""
    ran = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.nightly
def test_the_comparison_takes_little_of_the_time_of_tokenize_on_300_000_rows(after, monkeypatch, record_property):
    after(data="large")
    numbers = range(300_000)
    text = " ".join(["the owl sleeps in the barn"] * 8)
    write("data/large.csv", [{"text": f"{number} {text}", "label": number % 2} for number in numbers])
    source = {"kind": "files", "files": {"train": "data/large.csv"}}
    row = {
        "source": source,
        "text": ["text"],
        "label": {"column": "label", "names": ["even", "odd"]},
        "metrics": ["accuracy"],
    }
    add_row(Path(), "data/datasets.yaml", "large", row | {"split": {"validation": 0.1, "test": 0.1}})
    seconds = []
    for name in ("values", "at_start", "at_end"):
        monkeypatch.setattr(inputs, name, timed(getattr(inputs, name), seconds))
    whole = []
    assert ended(timed(start_stage, whole), tokenize.main, params.TokenizeView, "a stage")[0] is None
    said = f"compare inputs: {sum(seconds):.2f} of the {whole[0]:.0f} s of processor time of tokenize on 300,000 rows"
    record_property("measured", said)
    assert sum(seconds) < 0.02 * whole[0]


def timed(function, seconds):
    def run(*arguments):
        start = time.process_time()
        try:
            return function(*arguments)
        finally:
            seconds.append(time.process_time() - start)

    return run
