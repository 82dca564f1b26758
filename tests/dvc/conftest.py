"""A Git repository with our code and a tiny workspace, whose run of all stages DVC has recorded, with no network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo

from tests import rows
from tests.helpers import ROOT, run_stages

CODE = ("lsr", "lsr_onnx", "lsr_server", "pipeline", "stages", "data", "models", ".dvc/plots")
FILES = ("Makefile", "pyproject.toml", "constraints.txt", "dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config")
IDENTITY = {f"GIT_{who}_{what}": "tests" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def environment():
    """Return the variables of a shell in which the environment is active; one thread, or sums would differ."""
    path = f"{sys.prefix}/bin:{os.environ['PATH']}"
    settings = {"PATH": path, "PYTHONPATH": "", "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}
    return os.environ | IDENTITY | settings


def run_line(folder, line, code=0):
    """Type a line in a shell, which must end with this exit status; return what it prints on both streams."""
    ended = subprocess.run(["bash", "-c", line], cwd=folder, env=environment(), capture_output=True, check=False)
    said = (ended.stdout + ended.stderr).decode()
    assert ended.returncode == code, said
    return said


def copy_code(folder):
    """Copy what a clone has and a stage may read, but for the tables of data sets and models."""
    for name in CODE:
        shutil.copytree(ROOT / name, folder / name, dirs_exist_ok=True)  # with what Python has compiled
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)
    pip = folder / ".venv/bin/pip"
    pip.parent.mkdir(parents=True)
    pip.symlink_to("/usr/bin/true")  # what make would install is there


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    """The repository, after a run that is committed.

    The stages have run in this process, and `dvc commit` has recorded them as `dvc repro` does.
    """
    folder = tmp_path_factory.mktemp("repository")
    copy_code(folder)
    rows.make_workspace(folder)
    run_stages(folder)
    run_line(folder, "git init --quiet && dvc commit --force --quiet")
    run_line(folder, "git add --all && git commit --quiet --message 'First run'")
    return folder


@pytest.fixture
def restored(repository, monkeypatch):
    """The test is in the repository, whose files and outputs are as committed after it."""
    monkeypatch.chdir(repository)
    yield
    run_line(repository, "git reset --quiet --hard && git clean --quiet --force -d data models")
    with Repo() as repo:
        repo.checkout(force=True)


@pytest.fixture
def type_in(repository, tmp_path, monkeypatch):
    """A function that types a line in a copy of the repository, where the test is, too."""
    folder = shutil.copytree(repository, tmp_path / "repository", symlinks=True)
    monkeypatch.chdir(folder)

    def run(line, **options):
        return run_line(Path(), line, **options)

    return run
