"""DVC runs what an edit makes stale, and nothing else; results are kept, compared, queued and undone by commands.

DVC itself says what is stale: a run of all stages is made once, and most tests run no stage.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from dvc.repo import Repo

from tests.dvc.conftest import environment, run_line
from tests.helpers import change_params, digests, edit, printed, read_json, read_yaml, refused, run, run_stages, write

ADAPTER = Path("artifacts/adapter")
METRICS = Path("reports/evaluate/metrics.json")
ALL = {"tokenize", "factorize-init", "train", "evaluate"}
LATER = {"factorize-init", "train", "evaluate"}
TEXTS = ("the cat number 3 rests in the river", "the dog number 4 runs in the garden")


def stale():
    """Return the stages that DVC would run because of an edit, without those that only follow one of them."""
    with Repo() as repo:
        return set(repo.status())


def stages_run(printed):
    """Return the stages that have run, by what DVC prints."""
    return [line.split("'")[1] for line in printed.splitlines() if line.startswith("Running stage")]


def results():
    """Return the digests of all results."""
    return digests(Path("artifacts"), Path("reports"))


@pytest.mark.usefixtures("restored")
def test_after_a_run_nothing_is_stale_and_another_one_runs_nothing():
    assert stale() == set()
    before = results()
    assert stages_run(run_line(Path(), "dvc repro")) == []
    assert results() == before


CHANGES = [  # of params.yaml, and the stages that read it
    ({"tokenize": {"max_length": 20}}, {"tokenize", "factorize-init", "train"}),
    ({"data": "three"}, ALL),
    ({"model": "models/other"}, ALL),
    ({"seed": 1}, {"factorize-init", "train"}),
    ({"adapter": "lora"}, {"factorize-init", "train"}),
    ({"lsr": {"alpha": 7}}, {"factorize-init", "train"}),
    ({"lora": {"r": 2}}, set()),  # another adapter is chosen
    ({"train": {"epochs": 3}}, {"train"}),
    ({"evaluate": {"resamples": 300}}, {"evaluate"}),
]


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(("changes", "expected"), CHANGES, ids=[str(changes) for changes, _ in CHANGES])
def test_a_value_makes_stale_the_stages_that_read_it(changes, expected):
    change_params(Path(), **changes)
    assert stale() == expected


FILES = [
    ("data/animals.csv", {"tokenize"}),
    ("data/datasets.yaml", {"tokenize"}),
    ("pipeline/datasets.yaml", {"tokenize"}),
    ("pipeline/models.yaml", {"tokenize"}),
    ("models/bert/config.json", {"tokenize", "factorize-init"}),
    ("models/other/adapter_config.json", {"tokenize", "factorize-init"}),  # an adapter to start from
    ("stages/tokenize.py", {"tokenize"}),
    ("stages/train.py", {"train"}),
    ("lsr/errors.py", ALL),
    ("artifacts/tokens/test.arrow", ALL),
    ("artifacts/inputs.json", ALL),
    ("artifacts/init/adapter_config.json", {"factorize-init", "train"}),
    ("artifacts/adapter/adapter_config.json", {"train", "evaluate"}),
    ("artifacts/bank/README.md", {"train", "evaluate"}),
    ("reports/train/metrics.json", {"train"}),
    ("pipeline/summary.py", set()),  # writes no file
    ("pipeline/arena.yaml", set()),
]


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(("name", "expected"), FILES, ids=[name for name, _ in FILES])
def test_a_file_that_is_edited_or_new_makes_stale_the_stages_that_read_it(name, expected):
    path = Path(name)
    content = path.read_bytes() if path.exists() else b""
    write(path, content + b"\n")
    assert stale() == expected


@pytest.mark.usefixtures("restored")
def test_an_edit_of_another_entry_costs_one_tokenize_with_the_same_bytes():
    before = results()
    edit(Path("pipeline/datasets.yaml"), lambda entries: entries["three"].update(metrics=["accuracy"]))
    run_stages(Path(), "tokenize")
    assert results() == before
    assert stale() == {"tokenize"}


@pytest.mark.usefixtures("restored")
def test_an_edit_of_the_chosen_entry_makes_all_stages_stale():
    edit(Path("pipeline/datasets.yaml"), lambda entries: entries["two"].update(metrics=["accuracy"]))
    run_stages(Path(), "tokenize")
    assert stale() >= LATER


def metrics_of(stage):
    """Return what DVC compares of a stage's metrics: all but lists."""
    metrics = read_json(Path(f"reports/{stage}/metrics.json"))
    return {name: value for name, value in metrics.items() if not isinstance(value, list)}


def test_an_experiment_runs_what_its_value_changes_is_compared_and_undone(type_in):
    before = results()
    metrics = metrics_of("evaluate")
    said = type_in("dvc exp run -S train.epochs=2")
    assert stages_run(said) == ["train", "evaluate"]
    assert read_yaml(Path("params.yaml"))["train"]["epochs"] == 2
    assert stale() == set()
    differences = json.loads(type_in("dvc metrics diff --json"))["reports/evaluate/metrics.json"]
    assert differences
    for name, value in metrics_of("evaluate").items():
        if value != metrics[name]:
            assert differences[name]["old"] == metrics[name]
            assert differences[name]["new"] == value
    mine = write(Path("data/mine.csv"), "text,label\n")
    type_in("make undo")
    assert results() == before
    assert mine.is_file()
    assert type_in("git status --short").split() == ["??", "data/mine.csv"]


def test_every_plot_of_dvc_yaml_is_drawn(type_in):
    stages = read_yaml(Path("dvc.yaml"))["stages"].values()
    declared = {path for stage in stages for plot in stage["plots"] for path in plot}
    shown = json.loads(type_in("dvc plots show --json"))
    drawn = {path for path, charts in shown["data"].items() if charts}
    assert drawn | {"reports/evaluate/held_out_tenants.csv"} == declared  # its file has no rows here


@pytest.mark.usefixtures("restored")
def test_a_kept_adapter_predicts_and_is_listed_as_the_run_that_it_is_from():
    answers = printed("pipeline.predict", *TEXTS)
    assert "first" not in printed("pipeline.keep")
    printed("pipeline.keep", "first")
    assert printed("pipeline.predict", *TEXTS, "--adapter", "models/first") == answers
    assert Path("models/first/README.md").read_text() == Path("artifacts/card.md").read_text()
    (row,) = [line for line in printed("pipeline.keep").splitlines() if line.strip().startswith("first")]
    assert f"{read_json(METRICS)['accuracy']:.4g}" in row
    refused("pipeline.keep", "first", says="exists")
    printed("pipeline.keep", "first", "--force")
    refused("pipeline.keep", "bert", "--force", says="models/bert")  # is no kept adapter
    refused("pipeline.keep", "../first", says="name")


@pytest.mark.usefixtures("restored")
def test_the_last_adapter_comes_back_with_a_note_that_predict_shows():
    before = digests(ADAPTER)
    answers = printed("pipeline.predict", *TEXTS)
    shutil.rmtree(ADAPTER)
    shutil.rmtree("artifacts/bank")
    printed("pipeline.previous")
    assert before.items() <= digests(ADAPTER).items()
    ended = run("pipeline.predict", *TEXTS)
    assert ended.out == answers
    assert "lsr on models/bert, two, seed 0" in ended.err
    write(ADAPTER / "adapter_model.safetensors", "of a later run")
    printed("pipeline.previous")
    assert (ADAPTER / "adapter_model.safetensors").read_text() == "of a later run"


def save_experiment(type_in, name, best_score, **changes):
    """Record an experiment with a validation score, without running its stages."""
    change_params(Path(), **changes)
    edit(Path("reports/train/metrics.json"), best_score=best_score)
    type_in(f"dvc exp save --force --name {name}")


@pytest.mark.nightly
def test_the_best_experiment_has_the_best_validation_score_on_the_chosen_data(type_in):
    ended = run("pipeline.experiments", "--best")
    assert (ended.status, ended.out) == (2, "")
    save_experiment(type_in, "good", 0.7, seed=1)
    save_experiment(type_in, "best", 0.9, seed=2)
    save_experiment(type_in, "other", 0.99, data="three")
    change_params(Path(), data="two")
    ended = run("pipeline.experiments", "--best")
    assert ended.out == "best\n"
    assert "0.9 on two" in ended.err
    assert "1 of other data" in ended.err


@pytest.mark.nightly
def test_a_fresh_clone_runs_to_the_committed_results(repository, tmp_path):
    run_line(tmp_path, f"git clone --quiet {repository} clone")
    folder = tmp_path / "clone"
    said = run_line(folder, "dvc repro")
    assert stages_run(said) == ["tokenize", "factorize-init", "train", "evaluate"]
    assert run_line(folder, "git status --short") == ""
    assert (folder / "artifacts/adapter/adapter_model.safetensors").is_file()


@pytest.mark.nightly
def test_what_dvc_removed_before_a_mistake_comes_back_without_running_anything(type_in):
    before = results()
    change_params(Path(), lsr={"separation_rank": 1000})
    said = type_in("dvc repro", code=255)
    assert stages_run(said) == ["factorize-init"]
    assert "Traceback" not in said
    assert not Path("artifacts/init").exists()
    type_in("git checkout --quiet params.yaml")
    assert stages_run(type_in("dvc repro")) == []
    assert results() == before


@pytest.mark.nightly
def test_a_queue_of_seeds_runs_without_tokenizing_again(type_in):
    queued = type_in("dvc exp run --queue -S seed=1,2 -S adapter=lora -S lora.r=2")
    assert queued.count("Queued experiment") == 2
    said = type_in("dvc exp run --run-all")
    assert stages_run(said) == ["factorize-init", "train", "evaluate"] * 2
    table = printed("pipeline.experiments")
    assert table.count("Success") == 2
    assert run("pipeline.experiments", "--best").status == 0


@pytest.mark.nightly
@pytest.mark.parametrize("trial", range(2))
def test_a_run_that_is_killed_at_any_moment_leaves_whole_folders_and_is_finished_by_the_next(type_in, trial):
    folders = [Path("artifacts", name) for name in ("tokens", "init", "adapter", "bank")]
    old = {folder: digests(folder) for folder in folders}
    change_params(Path(), tokenize={"max_length": 20})
    started = time.monotonic()
    type_in("dvc repro")
    seconds = time.monotonic() - started
    new = {folder: digests(folder) for folder in folders}
    everything = results()
    type_in("make undo")
    type_in("rm -r .dvc/cache/runs")
    change_params(Path(), tokenize={"max_length": 20})
    process = subprocess.Popen(["dvc", "repro", "--quiet"], env=environment(), start_new_session=True)
    time.sleep(random.uniform(0, seconds))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for folder in folders:
        left = {path: digest for path, digest in digests(folder).items() if not path.endswith(".previous-run")}
        assert left in ({}, old[folder], new[folder])
    type_in("dvc repro")
    assert results() == everything
