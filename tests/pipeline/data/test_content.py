"""Local files that a row names are recorded by their content, and refused where DVC would not notice a change."""

import hashlib
from pathlib import Path

import pytest

from pipeline.data import content
from pipeline.params.sources import HubModel, TableSource
from tests.kit import refused


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch):
    """An empty repository with the two folders, as the working directory of a stage that DVC runs."""
    folder = tmp_path / "repository"
    for name in content.WATCHED:
        (folder / name).mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DVC_STAGE", "tokenize")


def files(**paths):
    return TableSource(kind="files", files=paths)


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def refusal(source):
    return refused(content.digests, source, "table: mine")


@pytest.mark.parametrize(
    "source",
    [
        HubModel(kind="hub", path="models/mine"),
        files(train="models/mine/config.json", test="models/mine/deep/x"),
        "models/mine",
    ],
)
def test_a_source_is_recorded_by_the_content_of_its_files_and_a_folder_by_all_except_hidden_ones(source):
    Path("models/mine/deep").mkdir(parents=True)
    Path("models/mine/.cache").mkdir()
    for name in ("config.json", "deep/x", ".hidden", ".cache/y"):
        Path("models/mine", name).write_text(name)
    found = content.digests(source, "")
    assert found == {"models/mine/config.json": sha256("config.json"), "models/mine/deep/x": sha256("deep/x")}


@pytest.mark.parametrize("path", ["a.csv", "data/../a.csv", "../repository/data/a.csv"])
def test_a_file_that_dvc_does_not_watch_is_refused_unless_dvc_is_not_running(path, monkeypatch):
    for name in ("a.csv", "data/a.csv"):
        Path(name).write_text("a")
    needed = f"table: mine: {path}: DVC notices changes only in data/ and models/; move it there"
    assert refusal(files(train=path)) == needed
    monkeypatch.delenv("DVC_STAGE")
    assert content.digests(files(train=path), "") == {path: sha256("a")}


def test_a_link_to_a_file_is_followed_and_one_to_a_folder_is_refused(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far/a.csv").write_text("a")
    Path("data/a.csv").symlink_to(tmp_path / "far/a.csv")
    Path("data/far").symlink_to(tmp_path / "far")
    assert content.digests(files(train="data/a.csv"), "") == {"data/a.csv": sha256("a")}
    assert "data/far: DVC does not follow a link to a folder; link its files" in refusal(files(train="data/far/a.csv"))
