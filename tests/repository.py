"""A Git repository with our code and a tiny configuration, in which real commands run, with no network."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests import forked, workspace
from tests.kit import write

SCRIPTS = Path(sys.executable).parent
IDENTITY = {f"GIT_{who}_{what}": "tests" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
PATIENCE = 1800  # seconds: on a machine that is busy, a pipeline of seven processes takes minutes


def command(folder, *words, code=0, patience=PATIENCE, **environment):
    environment = os.environ | {
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "1",
        "OMP_NUM_THREADS": "1",
        **IDENTITY,
        **environment,
    }
    environment.pop("DVC_ROOT", None)
    run = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=patience
    )
    assert run.returncode == code, run.stdout + run.stderr
    return run.stdout + run.stderr


def quick(folder, *words, **options):
    """Run a command that finds a `python` and a `dvc` which are forked from a process that has imported packages."""
    path = os.pathsep.join(map(str, (forked.scripts(), SCRIPTS, os.environ["PATH"])))
    return command(folder, *words, PATH=path, **options)


def move_where_dvc_watches(folder):
    """Other rows than those of what is moved go: each command reads all of a table, some of them ten times."""
    for old, new in {"glue": "data", "ratings.csv": "data", "tiny-roberta": "models"}.items():
        (folder / new).mkdir(exist_ok=True)
        shutil.move(folder / old, folder / new / old)
    models, data = (folder / f"pipeline/{table}.yaml" for table in ("models", "datasets"))
    tiny = workspace.read_yaml(models)["tiny"]
    glue = workspace.read_yaml(data)["glue"]
    glue["source"]["path"], tiny["source"]["path"] = "data/glue", "models/tiny-roberta"
    write(models, {"tiny": tiny})
    write(data, {"glue": glue, "ratings": files_row("data/ratings.csv")})


def add_row(folder, table, name, row):
    path = folder / table
    rows = workspace.read_yaml(path) if path.exists() else {}
    write(path, rows | {name: row})


def files_row(path):
    return workspace.ROWS["ratings"] | {"source": {"kind": "files", "files": {"train": str(path)}}}


def make(folder: Path) -> Path:
    """Fill an empty folder, run the pipeline there, commit all, and return it."""
    for name in ("lsr", "lsr_onnx", "lsr_server", "pipeline", "stages", "data", "models"):
        shutil.copytree(workspace.ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "dvc.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(workspace.ROOT / name, folder / name)
    (folder / ".dvc").mkdir()
    shutil.copy(workspace.ROOT / ".dvc/config", folder / ".dvc/config")
    workspace.make(folder)
    move_where_dvc_watches(folder)
    command(folder, "git", "init", "--quiet")
    quick(folder, "dvc", "repro")
    command(folder, "git", "add", "--all")
    command(folder, "git", "commit", "--quiet", "--message", "First run")
    return folder


def ran(output):
    """The stages that have run."""
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def share(repository: Path, remote: Path, bare: Path) -> None:
    """Have a repository push to a bare one, and what DVC holds to a folder."""
    command(repository, "dvc", "remote", "add", "--default", "shared", str(remote))
    command(repository, "git", "add", ".dvc/config")
    command(repository, "git", "commit", "--quiet", "--message", "Share what DVC holds")
    command(repository, "git", "clone", "--quiet", "--bare", str(repository), str(bare))
    command(repository, "git", "remote", "add", "origin", str(bare))
    command(repository, "dvc", "push", "--run-cache")
