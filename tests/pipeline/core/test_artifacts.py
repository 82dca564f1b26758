"""The writers leave the whole new content or the whole old one, and the same bytes every time."""

import json
import os
import stat
import subprocess
import sys

import pytest

from pipeline.core import artifacts
from pipeline.core.errors import UserError
from tests import deaths


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_takes_the_place_of_an_existing_one(tmp_path):
    old = tmp_path / "tokens"
    old.mkdir()
    (old / "stale.csv").write_text("old")
    with artifacts.replacing(old) as folder:
        folder.mkdir()
        (folder / "fresh.csv").write_text("new")
        assert names(old) == ["stale.csv"]
    assert names(old) == ["fresh.csv"]
    assert names(tmp_path) == ["tokens"]


def test_a_folder_keeps_its_old_content_when_the_body_raises(tmp_path):
    old = tmp_path / "tokens"
    old.mkdir()
    (old / "kept.csv").write_text("old")

    def write_half():
        with artifacts.replacing(old) as folder:
            folder.mkdir()
            (folder / "half.csv").write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert names(old) == ["kept.csv"]
    assert names(tmp_path) == ["tokens"]


@pytest.mark.parametrize("name", ["thesis.tex", "lora/notes.md", ".git/HEAD", "config.json.orig"])
@pytest.mark.parametrize("early", [True, False], ids=["before", "while it is written"])
def test_a_folder_with_a_file_of_somebody_else_stays(name, early, tmp_path):
    old = tmp_path / "exports"
    old.mkdir()
    (old / "parity.json").write_text("{}")

    def put():
        (old / name).parent.mkdir(exist_ok=True)
        (old / name).write_text("mine")

    def replace():
        with artifacts.replacing(old) as folder:
            assert not early, "it is refused before anything is computed"
            folder.mkdir()
            put()

    if early:
        put()
    with pytest.raises(UserError, match=f"holds {old / name}, which no stage writes"):
        replace()
    assert (old / name).read_text() == "mine"
    assert (old / "parity.json").exists()
    assert names(tmp_path) == ["exports"]


def test_a_file_keeps_its_old_content_when_the_body_raises(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text("old")

    def write_half():
        with artifacts.replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["metrics.json"]


def test_parent_folders_are_made(tmp_path):
    artifacts.write_metrics(tmp_path / "a/b/metrics.json", {"x": 1})
    assert (tmp_path / "a/b/metrics.json").exists()


def test_metrics_are_sorted_and_have_six_digits(tmp_path):
    path = tmp_path / "metrics.json"
    artifacts.write_metrics(path, {"b": 1 / 3, "a": 2, "name": "x"})
    assert path.read_text() == '{\n  "a": 2,\n  "b": 0.333333,\n  "name": "x"\n}\n'


def test_the_score_is_the_first_metric(tmp_path):
    path = tmp_path / "metrics.json"
    artifacts.write_metrics(path, {"accuracy": 0.5, "score": 0.5, "zeal": 1})
    assert list(json.loads(path.read_text())) == ["score", "accuracy", "zeal"]


def test_a_table_has_a_header_six_digits_and_line_feeds_only(tmp_path):
    path = tmp_path / "lengths.csv"
    artifacts.write_csv(path, ("name", "value"), [("a,b", 1 / 3), ("c", 4)])
    assert path.read_bytes() == b'name,value\n"a,b",0.333333\nc,4\n'


def replace_a_folder():
    with artifacts.replacing(artifacts.ADAPTER) as folder:
        folder.mkdir()
        for name in ("a.csv", "b.csv"):
            (folder / name).write_text("new")


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


OLD, NEW = ({"a.csv": word, "b.csv": word} for word in ("old", "new"))


def test_a_death_at_any_operation_leaves_the_old_folder_or_the_new_one_after_a_sweep(tmp_path, monkeypatch):
    def fresh(name):
        folder = tmp_path / name / artifacts.ADAPTER
        folder.mkdir(parents=True)
        for file in OLD:
            (folder / file).write_text("old")
        return tmp_path / name

    done = deaths.operations(fresh("counted"), replace_a_folder)
    taken = next(
        number for number, operation in enumerate(done, start=1) if operation.startswith("os.rename artifacts/.")
    )
    for number in range(1, len(done) + 1):
        folder = fresh(str(number))
        deaths.die(folder, replace_a_folder, number)
        monkeypatch.chdir(folder)
        artifacts.sweep()
        assert contents(artifacts.ADAPTER) == (NEW if number > taken else OLD), done[number - 1]
        assert names(folder / "artifacts") == ["adapter"]


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_what_dead_processes_left_beside_our_paths_is_swept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dead, running = dead_process(), os.getppid()
    swept = [f"artifacts/.adapter.{dead}/w", f"reports/train/.curves.{dead}/w", f"reports/train/.metrics.json.{dead}"]
    swept += [f"artifacts/.adapter.{os.getpid()}/w"]  # of a process before this one with the same number
    stays = [
        f"artifacts/.init.{running}/w",
        "artifacts/.gitignore",
        "artifacts/.a.b",
        "artifacts/.a.0",
        "artifacts/x/w",
    ]
    stays += [f".adapter.{dead}", f"reports/a/b/.c.{dead}/w", "artifacts/.note.20260101"]
    for name in swept + stays:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    artifacts.sweep()
    assert set(contents(tmp_path)) == set(stays)


def test_a_sweep_of_nothing_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    artifacts.sweep()
    assert names(tmp_path) == []


def test_a_folder_that_was_about_to_be_replaced_comes_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = tmp_path / f"artifacts/.adapter.{dead_process()}.old"
    old.mkdir(parents=True)
    (old / "w").write_text("old")
    artifacts.sweep()
    assert contents(tmp_path) == {"artifacts/adapter/w": "old"}


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_of_a_folder_follow_the_umask(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with artifacts.replacing(tmp_path / "adapter") as folder:
            (folder / "deeper").mkdir(parents=True)
            for name, own in (("a", 0o600), ("deeper/b", 0o444), ("c", 0o755)):
                (folder / name).touch()
                (folder / name).chmod(own)
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "adapter").rglob("*") if path.is_file()]
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [mode] * 3
