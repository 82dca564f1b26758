"""A real `dvc repro` in a copy of the repository, on a tiny model and data, with no network."""

import contextlib
import csv
import io
import json
import re
import shutil

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from pipeline.core import artifacts
from tests import workspace
from tests.kit import digests, write
from tests.repository import add_row, files_row, make, quick, ran

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("repro")]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A Git repository with our code and a tiny configuration, after its first `dvc repro`, committed."""
    return make(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def restored(repository):
    """The repository, which is as committed after the test."""
    yield repository
    quick(repository, "git", "reset", "--quiet", "--hard")
    quick(repository, "git", "clean", "--quiet", "--force", "-d", "data", "models")
    quick(repository, "dvc", "checkout", "--quiet")


def change_params(folder, **changes):
    path = folder / "params.yaml"
    write(path, workspace.merged(workspace.read_yaml(path), changes))


def changed_stages(repository):
    return set(json.loads(quick(repository, "dvc", "status", "--json")))


def outputs(folder):
    with contextlib.chdir(folder):
        return digests("artifacts", "reports")


def test_an_edit_that_concerns_nobody_costs_one_tokenize_with_the_same_bytes(restored):
    assert changed_stages(restored) == set()
    before = outputs(restored)
    change_params(restored, lora={"r": 5})
    assert changed_stages(restored) == set()
    (restored / "data/ratings.csv").write_text("sentence1,rating\n")
    add_row(restored, "pipeline/datasets.yaml", "other", files_row("data/ratings.csv"))
    add_row(restored, "data/datasets.yaml", "mine", files_row("data/ratings.csv"))
    assert ran(quick(restored, "dvc", "repro")) == ["tokenize"]
    (restored / "models/other").mkdir()
    (restored / "models/other/config.json").write_text("{}")
    assert ran(quick(restored, "dvc", "repro")) == ["tokenize", "factorize-init"]  # it could be where to start from
    assert outputs(restored) == before
    (restored / "pipeline/summary.py").write_text("")
    (restored / "pipeline/arena.yaml").write_text("")
    assert changed_stages(restored) == set()


def test_the_chosen_row_is_what_all_stages_depend_on_and_going_back_runs_nothing(restored):
    before = outputs(restored)
    row = workspace.read_yaml(restored / "pipeline/datasets.yaml")["glue"]
    add_row(restored, "pipeline/datasets.yaml", "glue", row | {"metrics": ["f1"]})
    output = quick(restored, "dvc", "repro")
    assert ran(output) == ["tokenize", "factorize-init", "train", "evaluate"]
    assert "is empty" not in output  # artifacts/bank without tenants
    assert "accuracy" not in json.loads((restored / "reports/evaluate/metrics.json").read_text())
    add_row(restored, "pipeline/datasets.yaml", "glue", row)
    assert ran(quick(restored, "dvc", "repro")) == []
    assert outputs(restored) == before
    output = quick(restored, "dvc", "exp", "run", "-S", "pipeline/datasets.yaml:glue.split.validation=0.3", "tokenize")
    assert ran(output) == ["tokenize"]
    assert changed_stages(restored) == {"factorize-init", "train", "evaluate"}


def test_an_edited_file_of_the_chosen_data_or_model_is_noticed(restored):
    path = restored / "data/glue/mrpc/train-00000.parquet"
    pd.read_parquet(path)[:100].to_parquet(path)
    assert ran(quick(restored, "dvc", "repro", "tokenize")) == ["tokenize"]
    with (restored / artifacts.TOKENIZE_SPLITS).open() as file:
        rows = {row["part"]: int(row["rows"]) for row in csv.DictReader(file)}
    assert rows["train"] + rows["validation"] == 100
    with (restored / "models/tiny-roberta/config.json").open("a") as file:
        file.write("\n")
    assert ran(quick(restored, "dvc", "repro", "tokenize")) == ["tokenize"]
    assert changed_stages(restored) == {"factorize-init", "train", "evaluate"}


def test_an_adapter_that_training_goes_on_from_starts_it_again_when_it_changes(restored):
    other = restored / "models/other"
    shutil.copytree(restored / "artifacts/adapter", other)
    change_params(restored, lsr={"init": "models/other"})
    assert ran(quick(restored, "dvc", "repro", "factorize-init")) == ["tokenize", "factorize-init"]
    before = digests(restored / "artifacts/init")
    weights = load_file(other / "adapter_model.safetensors")
    changed = {name: -value if ".factor_A1" in name else value for name, value in weights.items()}
    save_file(changed, other / "adapter_model.safetensors", metadata={"format": "pt"})
    assert ran(quick(restored, "dvc", "repro", "factorize-init")) == ["tokenize", "factorize-init"]
    assert digests(restored / "artifacts/init") != before


def test_a_mistake_is_a_line_and_what_dvc_removed_comes_back_without_running_anything(restored):
    before = outputs(restored)
    change_params(restored, lsr={"separation_rank": 1000})
    output = quick(restored, "dvc", "repro", code=255)
    assert "rank_shape [2, 2], got 1000" in output
    assert "undo the change and run `dvc repro` to restore what DVC has removed" in output
    assert "Traceback" not in output
    assert ran(output) == ["factorize-init"]
    assert not (restored / artifacts.INIT).exists()
    quick(restored, "git", "checkout", "--quiet", "params.yaml")
    assert ran(quick(restored, "dvc", "repro")) == []
    assert outputs(restored) == before


def test_the_first_stage_that_runs_names_all_mistakes_that_s_has_left_in_the_file(restored):
    before = outputs(restored)
    of_another_adapter = quick(restored, "dvc", "exp", "run", "-S", "lora.r=one")
    assert ran(of_another_adapter) == []
    of_a_section = quick(restored, "dvc", "exp", "run", "-S", "adapter=lroa", code=255)
    assert "Parameters 'lroa' are missing from 'params.yaml'" in of_a_section
    assert ran(of_a_section) == []
    of_a_row = quick(restored, "dvc", "exp", "run", "-S", "data=rating", code=255)
    assert "\nparams.yaml: lora: r: must be a number, got 'one'" in of_a_row
    assert "\nparams.yaml: adapter: no such section; did you mean lora?" in of_a_row
    assert "\nparams.yaml: data: no entry 'rating'; did you mean ratings?" in of_a_row
    assert "-S leaves params.yaml edited; to undo all edits of it: git checkout HEAD params.yaml" in of_a_row
    assert "Traceback" not in of_a_row
    assert ran(of_a_row) == ["tokenize"]
    quick(restored, "git", "checkout", "--quiet", "HEAD", "params.yaml")
    assert ran(quick(restored, "dvc", "repro")) == []
    assert outputs(restored) == before


def test_a_temporary_copy_says_which_file_git_does_not_track(restored):
    shutil.copy(restored / "data/ratings.csv", restored / "data/mine.csv")
    add_row(restored, "data/datasets.yaml", "mine", files_row("data/mine.csv"))
    output = quick(restored, "dvc", "exp", "run", "--temp", "-S", "data=mine", "tokenize", code=255)
    assert (
        "no entry 'mine' in this temporary copy, which has only what Git tracks: run `git add data/datasets.yaml`"
        in output
    )
    typo = quick(restored, "dvc", "exp", "run", "--temp", "-S", "data=mime", "tokenize", code=255)
    assert "no entry 'mime'; entries: glue, ratings" in typo
    quick(restored, "git", "add", "data/datasets.yaml")
    output = quick(restored, "dvc", "exp", "run", "--temp", "-S", "data=mine", "tokenize", code=255)
    assert "mine: data/mine.csv: not found; " in output
    assert "temporary copies have only what was added with `git add`" in output
    assert "DVC has removed" not in output


@pytest.mark.nightly
def test_a_queue_of_seeds_of_another_adapter_runs_without_tokenizing_again(restored):
    queued = quick(restored, "dvc", "exp", "run", "--queue", "-S", "seed=1,2", "-S", "adapter=lora", "-S", "lora.r=2")
    assert queued.count("Queued experiment") == 2
    output = quick(restored, "dvc", "exp", "run", "--run-all")
    assert ran(output) == ["factorize-init", "train", "evaluate"] * 2
    header, *rows = csv.reader(io.StringIO(quick(restored, "dvc", "exp", "show", "--csv")))
    assert len(set(header)) == len(header)  # otherwise columns would be mixed up
    shown = [dict(zip(header, row, strict=True)) for row in rows]
    assert {row["params.yaml:data"] for row in shown} == {"glue"}
    assert {(row["adapter"], row["seed"]) for row in shown} == {("lsr", "0"), ("lora", "1"), ("lora", "2")}


def test_a_version_of_the_adapter_is_an_artifact_of_the_registry(restored, tmp_path):
    quick(restored, "git", "tag", "-a", "adapter@v1.0.0", "-m", "First")
    quick(tmp_path, "dvc", "artifacts", "get", str(restored), "adapter", "--out", "got")
    quick(restored, "git", "tag", "-d", "adapter@v1.0.0")
    assert {path.name for path in (tmp_path / "got").iterdir()} >= {"adapter_model.safetensors", "README.md"}
    for path in (tmp_path / "got").iterdir():
        assert path.read_bytes() == (restored / artifacts.ADAPTER / path.name).read_bytes()


def test_the_end_of_a_run_fits_a_screen(restored):
    again = quick(restored, "dvc", "repro", "--force", "--single-item", "evaluate")
    stages, _, summary = again.partition("\nlsr on tiny, glue, seed 0\n")
    assert re.search(r"\nevaluate: \d+ seconds?\n", stages)
    assert summary.count("\n") < 25
    assert all(len(line) <= 100 for line in summary.splitlines())
    for said in ("accuracy    0.", "95 %: ", "18 optimizer steps, 260 examples read", "short run"):
        assert said in summary


@pytest.mark.nightly
def test_the_list_of_experiments_fits_a_screen(restored):
    quick(restored, "dvc", "exp", "remove", "--all-commits")
    quick(restored, "dvc", "queue", "remove", "--all")
    quick(restored, "dvc", "exp", "run", "-S", "adapter=lora")
    differing = [row.split()[1] for row in quick(restored, "dvc", "metrics", "diff").splitlines()]
    assert "loss" in differing
    assert {*differing} <= {"Metric", "score", "accuracy", "f1", "loss", "adapter_trained", "best_score", "energy"}
    shutil.copy(restored / "data/ratings.csv", restored / "data/mine.csv")
    added = quick(restored, "python", "-m", "pipeline.add", "data/mine.csv")
    assert "dvc exp run -S data=mine -S train.extend_epochs=auto\n" in added
    output = quick(restored, "dvc", "exp", "run", "-S", "data=mine", "-S", "adapter=vera", "-S", "vera.r=8")
    assert output.count("vera on tiny, mine, seed 0") == 1
    lines = quick(restored, "make", "-o", ".venv/.with-pipeline,demo", "experiments", COLUMNS="120").splitlines()
    header = next(line for line in lines if "Experiment" in line).removeprefix("experiments: ")
    values = {"score", "read", "adapter_trained", "adapter", "model", "seed", "params.yaml:data", "vera.r"}
    assert sorted(header.split(" | ")) == sorted(["Experiment", "State", *values])  # `data` once: no dep
    assert all(len(line) <= 120 and "…" not in line for line in lines)


PREDICT = ("python", "-m", "pipeline.predict", "the cat sleeps", "the cat rests", "--adapter")


def keep_first(repository):
    """Keep the last adapter, check that it answers and lists as its run, and return its answers."""
    assert "none is kept" in quick(repository, "python", "-m", "pipeline.keep")
    before = quick(repository, *PREDICT, "artifacts/adapter")
    assert "models/first: kept" in quick(repository, "python", "-m", "pipeline.keep", "first")
    check_first(repository, before, json.loads((repository / artifacts.EVALUATE_METRICS).read_text()))
    return before


def check_first(repository, answers, scores):
    assert quick(repository, *PREDICT, "models/first") == answers
    table = quick(repository, "python", "-m", "pipeline.keep")
    assert re.search(rf"first .*accuracy {scores['accuracy']:.4g}", table)


def test_a_kept_adapter_answers_and_lists_as_the_run_it_is_from(restored):
    keep_first(restored)
    assert (restored / "models/first/README.md").read_text() == (restored / artifacts.CARD).read_text()


@pytest.mark.nightly
def test_a_kept_adapter_outlives_the_next_run_and_can_be_where_another_begins(restored):
    scores = json.loads((restored / artifacts.EVALUATE_METRICS).read_text())
    card = (restored / artifacts.CARD).read_text()
    answers = keep_first(restored)
    quick(restored, "git", "add", "models/first")  # a run of a queue sees it only so
    change_params(restored, seed=7)
    assert "train" in ran(quick(restored, "dvc", "repro"))
    check_first(restored, answers, scores)
    assert (restored / "models/first/README.md").read_text() == card
    change_params(restored, lsr={"init": "models/first"})
    quick(restored, "dvc", "repro")
    assert json.loads((restored / artifacts.EVALUATE_METRICS).read_text())["data"] == "glue"


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        ("a/b", (), "'a/b'"),
        ("..", (), "a name begins with a letter or digit"),
        ("tiny-roberta", (), "models/tiny-roberta: exists and is not a kept adapter; choose another name"),
        ("tiny-roberta", ("--force",), "models/tiny-roberta: exists and is not a kept adapter; choose another name"),
    ],
)
def test_a_name_that_is_none_or_taken_is_refused_in_a_line(restored, name, options, line):
    printed = quick(restored, "python", "-m", "pipeline.keep", name, *options, code=2)
    assert line in printed
    assert printed.count("\n") == 1


def test_only_the_adapter_that_was_evaluated_last_is_kept(restored):
    keep = ("python", "-m", "pipeline.keep", "first")
    quick(restored, *keep)
    assert "models/first: exists; " in quick(restored, *keep, code=2)
    quick(restored, *keep, "--force")
    weights = restored / artifacts.ADAPTER / "adapter_model.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(weights).items()}, weights)
    line = "artifacts/adapter: modified since the last evaluation; run dvc repro first"
    assert line in quick(restored, *keep, "--force", code=2)
    shutil.rmtree(restored / artifacts.ADAPTER)
    assert "artifacts/adapter: deleted since" in quick(restored, *keep, "--force", code=2)
