"""A real `dvc repro` in a copy of the repository, on a tiny model and data, with no network."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import workspace

pytestmark = pytest.mark.slow
SCRIPTS = Path(sys.executable).parent


def command(folder, *words, code=0):
    environment = os.environ | {
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "DVC_NO_ANALYTICS": "1",
        "OMP_NUM_THREADS": "1",
        **{f"GIT_{who}_{what}": "tests" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }
    environment.pop("DVC_ROOT", None)
    run = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == code, run.stdout + run.stderr
    return run.stdout + run.stderr


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A Git repository with our code and a tiny configuration, after its first `dvc repro`, committed."""
    folder = tmp_path_factory.mktemp("repository")
    for name in ("lsr", "pipeline", "stages"):
        shutil.copytree(workspace.ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(workspace.ROOT / name, folder / name)
    (folder / ".dvc").mkdir()
    shutil.copy(workspace.ROOT / ".dvc/config", folder / ".dvc/config")
    workspace.make(folder)
    command(folder, "git", "init", "--quiet")
    command(folder, "dvc", "repro")
    command(folder, "git", "add", "--all")
    command(folder, "git", "commit", "--quiet", "--message", "First run")
    return folder


def ran(output):
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def test_a_second_repro_has_nothing_to_do(repository):
    assert ran(command(repository, "dvc", "repro")) == []
    assert "up to date" in command(repository, "dvc", "status")


def test_metrics_are_tracked(repository):
    shown = json.loads(command(repository, "dvc", "metrics", "show", "--json"))
    metrics = shown[""]["data"]["reports/evaluate/metrics.json"]["data"]
    assert 0 <= metrics["score"] <= 1


def test_a_value_of_another_adapter_changes_nothing(repository):
    params = workspace.read_yaml(repository / "params.yaml")
    workspace.write_yaml(repository / "params.yaml", workspace.merged(params, {"lora": {"r": 5}}))
    assert "up to date" in command(repository, "dvc", "status")
    command(repository, "git", "checkout", "--quiet", "params.yaml")


def test_experiments_switch_the_adapter_and_sweep_seeds_without_tokenizing_again(repository):
    output = command(repository, "dvc", "exp", "run", "--name", "lora", "-S", "adapter=lora", "-S", "lora.r=2")
    assert ran(output) == ["factorize-init", "train", "evaluate"]
    differences = json.loads(command(repository, "dvc", "metrics", "diff", "--json"))
    counts = differences["reports/evaluate/metrics.json"]["adapter_trained"]
    assert counts == {"old": 320, "new": 2 * 48 * 4, "diff": 64}
    command(repository, "git", "restore", "--staged", "--worktree", ".")
    command(repository, "dvc", "checkout")

    sweep = ("dvc", "exp", "run", "--queue", "-S", "adapter=lsr,lora", "-S", "seed=0,1")
    assert command(repository, *sweep).count("Queued experiment") == 4
    command(repository, "dvc", "exp", "run", "--run-all")
    table = json.loads(command(repository, "dvc", "exp", "show", "--json"))
    experiments = [row for revision in table for row in revision.get("experiments") or []]
    assert len(experiments) == 5


def test_a_bad_value_stops_before_anything_runs(repository):
    output = command(repository, "dvc", "exp", "run", "--temp", "-S", "train.epochs=0", code=255)
    assert "params.yaml: train.epochs: input should be greater than 0, got 0" in output
    assert "Traceback" not in output
    assert "up to date" in command(repository, "dvc", "status")
