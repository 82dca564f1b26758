"""A real `dvc repro` in a copy of the repository, on a tiny model and data, with no network.

The first one, whose outputs the tests begin with, starts an interpreter for each stage; later stages are forked.
"""

import contextlib
import csv
import io
import json
import shutil

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from pipeline.core import artifacts
from tests import workspace
from tests.repository import add_row, files_row, make, quick, ran
from tests.stages.running import digests

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A Git repository with our code and a tiny configuration, after its first `dvc repro`, committed."""
    return make(tmp_path_factory.mktemp("repository"))


def test_a_second_repro_has_nothing_to_do(repository):
    assert ran(quick(repository, "dvc", "repro")) == []
    assert "up to date" in quick(repository, "dvc", "status")


def test_metrics_are_tracked(repository):
    shown = json.loads(quick(repository, "dvc", "metrics", "show", "--json"))
    metrics = shown[""]["data"]["reports/evaluate/metrics.json"]["data"]
    assert 0 <= metrics["score"] <= 1


@pytest.fixture
def restored(repository):
    """The repository, which is as committed after the test."""
    yield repository
    quick(repository, "git", "reset", "--quiet", "--hard")
    quick(repository, "git", "clean", "--quiet", "--force", "-d", "data", "models")
    quick(repository, "dvc", "checkout", "--quiet")
    assert "up to date" in quick(repository, "dvc", "status")


def test_a_value_of_another_adapter_is_checked_and_changes_nothing(restored):
    change_params(restored, {"lora": {"r": 5}})
    assert ran(quick(restored, "dvc", "repro")) == ["check"]


def changed_stages(repository):
    return set(json.loads(quick(repository, "dvc", "status", "--json")))


def test_an_edited_file_of_the_chosen_data_is_noticed(restored):
    path = restored / "data/glue/mrpc/train-00000.parquet"
    pd.read_parquet(path)[:100].to_parquet(path)
    assert ran(quick(restored, "dvc", "repro", "tokenize")) == ["tokenize"]
    metrics = json.loads((restored / "reports/tokenize/metrics.json").read_text())
    assert metrics["train_rows"] + metrics["validation_rows"] == 100


def test_an_edited_file_of_the_chosen_model_is_noticed(restored):
    with (restored / "models/tiny-roberta/config.json").open("a") as file:
        file.write("\n")
    assert ran(quick(restored, "dvc", "repro", "tokenize")) == ["tokenize"]
    assert changed_stages(restored) == {"check-model", "factorize-init", "train", "evaluate"}


def test_a_file_that_no_chosen_row_names_runs_nothing_else(restored):
    (restored / "data/ratings.csv").write_text("sentence1,rating\n")
    (restored / "models/other").mkdir()
    (restored / "models/other/config.json").write_text("{}")
    assert ran(quick(restored, "dvc", "repro")) == ["tokenize"]
    assert ran(quick(restored, "dvc", "repro")) == []


def change_params(folder, changes):
    path = folder / "params.yaml"
    workspace.write_yaml(path, workspace.merged(workspace.read_yaml(path), changes))


def choose_lsr(folder, **words):
    change_params(folder, {"lsr": words})


def test_frames_are_pooled_once_and_held_by_an_adapter_that_starts_again_when_they_change(restored):
    words = {"rank_shape": [3], "separation_rank": 1, "train": "core", "init": "gradient", "examples": 40}
    choose_lsr(restored, **words, frames_from=["glue", "ratings"])
    assert ran(quick(restored, "dvc", "repro", "factorize-init")) == [
        "check",
        "tokenize",
        "check-model",
        "factorize-init",
    ]
    (restored / "data/ratings.csv").write_text((restored / "data/ratings.csv").read_text() + "one more,1.0\n")
    assert ran(quick(restored, "dvc", "repro", "factorize-init")) == ["tokenize", "check-model", "factorize-init"]

    family = restored / "models/family"
    shutil.copytree(restored / "artifacts/init", family)
    choose_lsr(restored, frames="models/family", frames_from=[])
    everything = ["factorize-init", "train", "evaluate"]
    assert ran(quick(restored, "dvc", "repro")) == ["check", "tokenize", "check-model", *everything]
    metrics = json.loads((restored / "reports/evaluate/metrics.json").read_text())
    assert metrics["adapter_trained"] == metrics["adapter_stored"] == 4 * 3**2
    weights = load_file(family / "adapter_model.safetensors")
    changed = {name: -value if ".factor_A1" in name else value for name, value in weights.items()}
    save_file(changed, family / "adapter_model.safetensors", metadata={"format": "pt"})
    assert ran(quick(restored, "dvc", "repro")) == ["tokenize", "check-model", *everything]


def test_frames_where_dvc_does_not_watch_are_one_line(restored):
    choose_lsr(restored, train="core", frames="artifacts/adapter")
    output = quick(restored, "dvc", "repro", code=255)
    alone = "DVC notices changes only in data/ and models/; move it there"
    assert f"params.yaml: lsr.frames: artifacts/adapter: {alone}" in output
    assert "Traceback" not in output


def test_a_deleted_file_is_noticed(restored):
    shutil.rmtree(restored / "data/glue")
    output = quick(restored, "dvc", "repro", code=255)
    assert "pipeline/datasets.yaml: glue: data/glue: not found; paths start at the root of the repository" in output
    assert "Traceback" not in output


def test_a_temporary_copy_says_which_file_git_does_not_track(restored, tmp_path):
    shutil.copy(restored / "data/ratings.csv", restored / "data/mine.csv")
    shutil.copy(restored / "data/ratings.csv", tmp_path / "elsewhere.csv")
    add_row(restored, "datasets", "mine", files_row("data/mine.csv"))
    add_row(restored, "datasets", "absolute", files_row(tmp_path / "elsewhere.csv"))
    output = quick(restored, "dvc", "exp", "run", "--temp", "-S", "data=mine", code=255)
    assert "mine: data/mine.csv: not found in this copy of what Git tracks" in output
    assert "git add data/mine.csv, or name it by its absolute path" in output
    quick(restored, "git", "add", "data/mine.csv")
    for name, checked in {"mine": [], "absolute": ["check"]}.items():  # the first has been checked before it failed
        output = quick(restored, "dvc", "exp", "run", "--temp", "--name", name, "-S", f"data={name}", "tokenize")
        assert ran(output) == [*checked, "tokenize"]
    quick(restored, "dvc", "exp", "remove", "mine", "absolute")


def test_experiments_switch_the_adapter_and_sweep_seeds_without_tokenizing_again(repository):
    output = quick(repository, "dvc", "exp", "run", "--name", "lora", "-S", "adapter=lora", "-S", "lora.r=2")
    assert ran(output) == ["check", "check-model", "factorize-init", "train", "evaluate"]
    differences = json.loads(quick(repository, "dvc", "metrics", "diff", "--json"))
    counts = differences["reports/evaluate/metrics.json"]["adapter_trained"]
    assert counts == {"old": 320, "new": 2 * 48 * 4, "diff": 64}
    quick(repository, "git", "restore", "--staged", "--worktree", ".")
    quick(repository, "dvc", "checkout")

    sweep = ("dvc", "exp", "run", "--queue", "-S", "adapter=lsr,lora", "-S", "seed=0,1")
    assert quick(repository, *sweep).count("Queued experiment") == 4
    quick(repository, "dvc", "exp", "run", "--run-all")
    table = json.loads(quick(repository, "dvc", "exp", "show", "--json"))
    experiments = [row for revision in table for row in revision.get("experiments") or []]
    assert len(experiments) == 5
    header, *rows = csv.reader(io.StringIO(quick(repository, "dvc", "exp", "show", "--csv")))
    assert len(set(header)) == len(header)  # otherwise columns would be mixed up
    assert [len(row) for row in rows] == [len(header)] * len(rows)
    shown = [dict(zip(header, row, strict=True)) for row in rows]
    assert {row["params.yaml:data"] for row in shown} == {"glue"}
    assert {row["adapter"] for row in shown} == {"lsr", "lora"}


def outputs(folder):
    with contextlib.chdir(folder):
        return digests("artifacts") | digests("reports")


BAD_VALUES = {
    "params.yaml: train.epochs: input should be greater than or equal to 1, got 0": {"train": {"epochs": 0}},
    "params.yaml: evaluate.exprot: no such key; did you mean export?": {"evaluate": {"exprot": []}},
    "or 'peft', got 'lro'; did you mean lsr?": {"adapter": "lro"},
}
# What the model does not allow.
UNFIT_VALUES = {
    "params.yaml: lsr: target_modules: 'nothing' matches no layer": {"lsr": {"target_modules": "nothing"}},
    "params.yaml: tokenize.max_length: the model takes at most 30 tokens, got 31": {"tokenize": {"max_length": 31}},
    "rank_shape [2, 2], got 1000": {"lsr": {"separation_rank": 1000}},
}


@pytest.mark.parametrize(("values", "ends"), [(BAD_VALUES, ["check"]), (UNFIT_VALUES, ["check", "check-model"])])
def test_a_bad_value_is_refused_before_dvc_removes_what_a_stage_wrote(restored, values, ends):
    before = outputs(restored)
    lost = [artifacts.CHECKED.as_posix(), artifacts.CHECKED_MODEL.as_posix()]  # by the stage that says no
    for message, changes in values.items():
        quick(restored, "git", "checkout", "--quiet", "params.yaml")
        change_params(restored, changes)
        output = quick(restored, "dvc", "repro", code=255)
        assert message in output
        assert "Traceback" not in output
        assert "DVC removed" not in output
        assert ran(output)[-1] == ends[-1]
        assert {path for path in before if path not in lost} <= outputs(restored).keys()
        assert outputs(restored).items() <= before.items()


def test_what_a_later_stage_lost_comes_back_as_its_message_says(restored):
    before = outputs(restored)
    words = {"adapter": "peft", "peft": {"type": "LOHA", "options": {"r": -1}}}  # its own options are PEFT's to judge
    change_params(restored, words)
    output = quick(restored, "dvc", "repro", code=255)
    assert "params.yaml: peft: LOHA: " in output
    assert "factorize-init: DVC removed its last outputs before it began; undo the change and run `dvc repro`" in output
    assert not (restored / artifacts.INIT).exists()
    quick(restored, "git", "checkout", "--quiet", "params.yaml")
    assert ran(quick(restored, "dvc", "repro")) == []
    assert outputs(restored) == before


def test_a_bad_value_stops_before_anything_runs(repository):
    output = quick(repository, "dvc", "exp", "run", "--temp", "-S", "train.epochs=0", code=255)
    assert "params.yaml: train.epochs: input should be greater than or equal to 1, got 0" in output
    assert "Traceback" not in output
    assert "up to date" in quick(repository, "dvc", "status")
