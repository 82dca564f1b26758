"""What an edit makes stale, asked of DVC itself: a change of a command line or an export never retrains."""

import shutil
import subprocess
from contextlib import chdir
from copy import deepcopy
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest
from dvc.repo import Repo
from dvc.utils.serialize import _yaml

from pipeline import params
from pipeline.methods import adapters
from stages import check, check_model, tokenize
from tests.workspace import ROOT, change, merged, read_yaml, write_yaml

STAGES = read_yaml(ROOT / "dvc.yaml")["stages"]
CHECKS = {"check-model"}
MODEL = {"factorize-init", "train", "evaluate"}
ROWS = {"tokenize", *MODEL}
# Where a line is edited: the stages whose own dependencies it changes. What follows them runs again only if their
# outputs change.
STALE = {
    "lsr/__init__.py": CHECKS | MODEL,
    "lsr/algebra/fit.py": CHECKS | MODEL,
    "lsr/init/random.py": CHECKS | MODEL,
    "lsr/tuner/adapter.py": CHECKS | MODEL,
    "lsr/convert/export.py": {"evaluate"},
    "lsr/serve/bank.py": set(),
    "lsr/__main__.py": set(),
    "pipeline/core/artifacts.py": set(STAGES),
    "pipeline/ranks.py": set(STAGES),
    "pipeline/params/schema.py": set(STAGES),
    "pipeline/params/__main__.py": set(),
    "pipeline/data/content.py": {"tokenize", "factorize-init"},
    "pipeline/data/sources.py": {"tokenize", "factorize-init"},
    "pipeline/data/tokens.py": ROWS,
    "pipeline/data/examples.py": {"tokenize", "factorize-init"},
    "pipeline/methods/base_models.py": CHECKS | ROWS,
    "pipeline/methods/adapters.py": CHECKS | MODEL,
    "pipeline/methods/pooling.py": CHECKS | MODEL,
    "pipeline/evaluation/scores.py": {"train", "evaluate"},
    "pipeline/evaluation/plots.py": MODEL,
    "pipeline/training/trainer.py": {"train"},
    "pipeline/predict/__main__.py": set(),
    "pipeline/arena/plan.py": set(),
    "pipeline/compare/cells.py": set(),
    "pipeline/datasets.yaml": {"check", "tokenize"},
    "pipeline/models.yaml": {"check", "tokenize"},
    "params.yaml": {"check"},
    "stages/check.py": {"check"},
    "stages/check_model.py": {"check-model"},
    "stages/train.py": {"train"},
    "data/new.csv": {"tokenize"},
    "models/new/config.json": {"tokenize"},
    "benchmarks/figures.py": set(),
    "README.md": set(),
    "tests/workspace.py": set(),
}


@pytest.fixture(scope="module", autouse=True)
def parsed_once():
    """DVC reads the same two tables for each stage, in nine tenths of the time that a status takes."""
    parse = cache(_yaml.parse_yaml)
    with patch.object(_yaml, "parse_yaml", lambda *words, **options: deepcopy(parse(*words, **options))):
        yield


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A copy of the repository in which every stage is up to date, most of them with outputs that no stage made."""
    folder = tmp_path_factory.mktemp("repository") / "copy"
    for name in ("lsr", "pipeline", "stages", "data", "models", "benchmarks", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / ".dvc").mkdir()
    for name in ("dvc.yaml", "params.yaml", "README.md", ".dvcignore", ".dvc/config"):
        shutil.copy(ROOT / name, folder / name)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    for stage in STAGES.values():
        for kind in ("outs", "metrics", "plots"):
            for entry in stage.get(kind, []):
                path = folder / (entry if isinstance(entry, str) else next(iter(entry)))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("{}")
    with chdir(folder):
        run_first_stages()
        commit()
    return folder


def commit():
    """Have DVC take everything for up to date."""
    with Repo() as repo:
        repo.commit(force=True)
        assert repo.status() == {}


@pytest.mark.parametrize("path", STALE)
def test_an_edit_makes_those_stages_stale_that_depend_on_it(path, repository):
    file = repository / path
    before = file.read_text() if file.exists() else None
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"{before or ''}\n")
    try:
        with chdir(repository), Repo() as repo:
            assert set(repo.status()) == STALE[path]
    finally:
        file.unlink()
        if before is not None:
            file.write_text(before)


@pytest.fixture
def copied(repository, tmp_path, monkeypatch):
    """A copy of that, as the working folder."""
    monkeypatch.chdir(shutil.copytree(repository, tmp_path / "copy"))


@pytest.fixture
def chosen(copied):
    """A function that has other values in params.yaml there, and everything up to date."""

    def choose(**changes):
        change(**changes)
        run_first_stages()
        commit()

    return choose


def run_first_stages():
    check.main(params.load(params.CheckView))
    tokenize.main(params.load(params.TokenizeView))
    check_model.main(params.load(params.CheckModelView))


def stale():
    """What is stale now, and what once the stages have run that write no more than what others depend on."""
    with Repo() as repo:
        first = set(repo.status())
        run_first_stages()
        for stage in ("check", "tokenize", "check-model"):
            repo.commit(stage, force=True)
        return first, set(repo.status())


def change_row(name, **changes):
    path = Path("pipeline/datasets.yaml")
    rows = read_yaml(path)
    write_yaml(path, rows | {name: merged(rows[name], changes)})


POOL = ["movie-reviews", "tweets"]


@pytest.mark.parametrize(
    ("row", "then"),
    [("tweets", {"factorize-init"}), ("editorials", set()), ("movie-reviews", ROWS)],  # pooled, neither, chosen
)
def test_a_change_of_a_pooled_row_is_noticed_and_starts_the_adapter_again_alone(chosen, row, then):
    chosen(lsr={"frames_from": POOL, "init": "update"})
    change_row(row, cut={"validation": 0.125})
    first, found = stale()
    assert "tokenize" in first
    assert found == then


@pytest.mark.parametrize(("path", "then"), [("models/family", {"factorize-init"}), ("models/other", set())])
def test_a_change_of_the_frames_that_are_held_starts_the_adapter_again_alone(chosen, monkeypatch, path, then):
    monkeypatch.setattr(adapters, "read_family", lambda config: None)  # the files below are none that it could read
    for name in ("family", "other"):
        Path(f"models/{name}").mkdir()
        Path(f"models/{name}/adapter_model.safetensors").write_text("old")
    chosen(lsr={"frames": "models/family", "train": "core"})
    Path(path, "adapter_model.safetensors").write_text("new")
    assert stale() == ({"tokenize"}, then)


@pytest.mark.parametrize(
    ("changes", "then"),
    [
        ({"lsr": {"frames_from": POOL, "init": "update"}}, {"factorize-init", "train"}),
        ({"lsr": {"examples": 8}}, {"factorize-init", "train"}),
        ({"lora": {"layers": [0]}}, set()),
        ({"tokenize": {"max_length": 64}}, {"tokenize", "factorize-init", "train"}),
        ({"evaluate": {"resamples": 100}}, {"evaluate"}),
    ],
)
def test_a_value_makes_those_stages_stale_that_read_it(copied, changes, then):
    change(**changes)
    _, found = stale()
    assert found == then


def test_every_room_is_in_the_table():
    rooms = {path.relative_to(ROOT).as_posix() for top in ("lsr", "pipeline") for path in (ROOT / top).iterdir()}
    rooms = {room for room in rooms if (ROOT / room).is_dir() and not room.endswith("__pycache__")}
    assert rooms <= {path.rpartition("/")[0] for path in STALE}
