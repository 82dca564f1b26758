"""One process at a time has a run's folder; runs that were cut off stay for a while, and not too many of them."""

import multiprocessing
import os

import pytest
from filelock import FileLock

from pipeline.core.errors import UserError
from pipeline.training import run_folder
from pipeline.training.run_folder import KEPT_RUNS, held

OWN = "0" * 16


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def cut_off(root, number, mtime=None):
    folder = root / f"{number:016x}"
    (folder / "checkpoint-1").mkdir(parents=True)
    folder.with_suffix(".lock").touch()
    if mtime is not None:
        os.utime(folder, (mtime, mtime))
    return folder


def test_a_finished_run_leaves_nothing(tmp_path):
    with held(tmp_path / "root" / OWN) as checkpoints:
        checkpoints.aside.mkdir(parents=True)
        checkpoints.path(3).mkdir()
        assert names(tmp_path / "root") == [OWN, f"{OWN}.lock", "lock"]
    assert names(tmp_path / "root") == ["lock"]


def fail(folder, error):
    with held(folder) as checkpoints:
        checkpoints.aside.mkdir(parents=True)
        checkpoints.path(3).mkdir()
        raise error


@pytest.mark.parametrize("error", [UserError("diverged"), OSError(28, "No space left"), KeyboardInterrupt()])
def test_a_run_that_fails_keeps_its_checkpoints_and_nothing_half_written(tmp_path, error):
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else UserError):
        fail(tmp_path / OWN, error)
    assert names(tmp_path / OWN) == ["checkpoint-3"]
    FileLock(tmp_path / f"{OWN}.lock").acquire(timeout=0).lock.release()


def test_what_a_killed_process_was_writing_is_gone_at_the_next_start(tmp_path):
    (tmp_path / OWN / "writing" / "checkpoint-7").mkdir(parents=True)
    with held(tmp_path / OWN) as checkpoints:
        assert not checkpoints.aside.exists()


def other(folder, here):
    """Hold a run until told to end it."""
    with held(folder) as checkpoints:
        checkpoints.path(1).mkdir(parents=True)
        here.send("held")
        here.recv()


@pytest.fixture
def process(tmp_path):
    """Another process that holds our run, and the pipe to it."""
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe()
    process = context.Process(target=other, args=(tmp_path / OWN, its))
    process.start()
    assert mine.recv() == "held"
    yield process, mine
    process.kill()
    process.join()


def test_a_second_process_says_that_it_waits_and_starts_when_the_first_has_ended(
    process, tmp_path, monkeypatch, capsys
):
    looks = []

    def sleep(_):
        looks.append(names(tmp_path / OWN))
        if len(looks) == 3:
            process[1].send("end")
            process[0].join()

    monkeypatch.setattr(run_folder.time, "sleep", sleep)
    with held(tmp_path / OWN) as checkpoints:
        assert checkpoints.newest() is None
    assert looks == [["checkpoint-1"]] * 3  # as the first process has left them
    waits = f"train: waits for another process that trains with the same inputs, in {tmp_path / OWN}\n"
    assert capsys.readouterr().out == waits


def test_a_killed_process_gives_its_run_free(process, tmp_path):
    process[0].kill()
    process[0].join()
    with held(tmp_path / OWN) as checkpoints:
        assert checkpoints.path(1).exists()


def test_a_run_that_another_process_has_is_not_removed_however_old(process, tmp_path):
    os.utime(tmp_path / OWN, (0, 0))
    with held(tmp_path / f"{1:016x}"):
        assert (tmp_path / OWN / "checkpoint-1").exists()


def test_old_runs_that_were_cut_off_are_removed_and_counted(tmp_path, capsys):
    for number, mtime in ((1, None), (2, 0), (3, 0)):
        cut_off(tmp_path, number, mtime)
    with held(tmp_path / OWN):
        assert names(tmp_path) == [f"{OWN}.lock", f"{1:016x}", f"{1:016x}.lock", "lock"]
    assert capsys.readouterr().out == f"train: removed 2 old interrupted runs from {tmp_path}\n"


def test_the_oldest_of_too_many_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder.time, "time", lambda: 1000.0)
    for number in range(1, KEPT_RUNS + 3):
        cut_off(tmp_path, number, mtime=number)
    with held(tmp_path / OWN):
        kept = {name for name in names(tmp_path) if len(name) == 16}
    assert kept == {f"{number:016x}" for number in range(4, KEPT_RUNS + 3)}


def test_locks_without_a_run_are_removed_and_foreign_files_stay(tmp_path, capsys):
    (tmp_path / f"{1:016x}.lock").touch()
    for name in ("notes.txt", "0123456789abcdefg", "lock"):
        (tmp_path / name).touch()
    with held(tmp_path / OWN):
        pass
    assert names(tmp_path) == ["0123456789abcdefg", "lock", "notes.txt"]
    assert capsys.readouterr().out == ""
