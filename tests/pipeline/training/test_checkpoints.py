"""A run's checkpoints: the last whole one is taken, whatever a kill or a disk has done to the others."""

import hashlib
import json
import os
import shutil
import stat
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from pipeline.core.errors import UserError
from pipeline.training.checkpoints import SUMS, Checkpoints, KeepWhole
from tests import deaths

FILES = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


def save(folder, step, best):
    """What the Trainer leaves aside, and the callback after it."""
    checkpoints = Checkpoints(folder)
    written = checkpoints.aside / f"checkpoint-{step}"
    written.mkdir(parents=True)
    for name in FILES:
        (written / name).write_text(f"{name} of {step}")
    (written / "training_args.bin").write_bytes(b"a pickle")
    state = TrainerState(global_step=step, best_global_step=best, best_model_checkpoint=str(written))
    arguments = TrainingArguments(output_dir=str(checkpoints.aside), report_to=[])
    KeepWhole(checkpoints).on_save(arguments, state, TrainerControl())
    return state


@pytest.fixture
def kept(tmp_path):
    """The best checkpoint, of step 10, and the last one, of step 30."""
    for step in (10, 20, 30):
        save(tmp_path, step, best=10)
    return Checkpoints(tmp_path)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_best_and_the_last_are_kept(kept, tmp_path, capsys):
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-30", "writing"]
    assert names(kept.aside) == []
    assert kept.newest() == tmp_path / "checkpoint-30"
    assert capsys.readouterr().out == ""


def test_sums_are_those_of_sha256sum_and_no_pickle_is_kept_that_nothing_reads(kept):
    assert names(kept.path(30)) == sorted([*FILES, SUMS])
    for line in (kept.path(30) / SUMS).read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((kept.path(30) / name).read_bytes()).hexdigest() == digest


def test_a_moved_run_finds_its_best_checkpoint(kept, tmp_path):
    moved = Checkpoints(tmp_path / "moved")
    for step in (10, 30):
        shutil.move(kept.path(step), moved.path(step))
    assert str(tmp_path) not in (moved.path(30) / "trainer_state.json").read_text()
    state = TrainerState(**json.loads((moved.newest() / "trainer_state.json").read_text()))
    KeepWhole(moved).on_train_begin(None, state, TrainerControl())
    assert state.best_model_checkpoint == str(moved.path(10))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


DAMAGES = {
    "missing": os.remove,
    "flipped": flip,
    "cut": cut,
    "empty": lambda path: os.truncate(path, 0),
    "folder": lambda path: (path.unlink(), path.mkdir()),
    "dangling": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", [*FILES, SUMS])
def test_any_damage_to_any_file_of_the_last_is_noticed(kept, capsys, name, damage):
    DAMAGES[damage](kept.path(30) / name)
    assert kept.newest() == kept.path(10)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("train: goes on from checkpoint-10; not intact, so skipped: checkpoint-30 (")
    assert not kept.path(30).exists()


def test_every_bit_counts(tmp_path):
    save(tmp_path, 10, best=10)
    checkpoints = Checkpoints(tmp_path)
    for name in ("optimizer.pt", SUMS):
        whole = (checkpoints.path(10) / name).read_bytes()
        for position in range(len(whole)):
            changed = bytearray(whole)
            changed[position] ^= 1 << position % 8
            (checkpoints.path(10) / name).write_bytes(changed)
            with pytest.raises(UserError):
                checkpoints.check(10)
        (checkpoints.path(10) / name).write_bytes(whole)
    checkpoints.check(10)


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda path: (path / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda path: flip(path / "rng_state.pth"), "rng_state.pth has changed"),
        (lambda path: (path / "pytorch_model.bin").touch(), "pytorch_model.bin is unexpected"),
        (lambda path: (path / SUMS).unlink(), "SHA256SUMS is missing"),
        (lambda path: (path / SUMS).write_bytes(b""), "SHA256SUMS is truncated"),
        (lambda path: (path / SUMS).write_bytes(b"\xff"), "SHA256SUMS has changed"),
        (lambda path: (shutil.rmtree(path), path.touch()), "cannot be read: Not a directory"),
        (lambda path: (shutil.rmtree(path), path.mkdir()), "SHA256SUMS is missing"),
    ],
)
def test_one_line_says_what_is_wrong(kept, capsys, damage, line):
    damage(kept.path(30))
    assert kept.newest() == kept.path(10)
    skipped = f"train: goes on from checkpoint-10; not intact, so skipped: checkpoint-30 ({line})\n"
    assert capsys.readouterr().out == skipped


def test_without_its_best_the_last_is_no_checkpoint(kept, tmp_path, capsys):
    flip(kept.path(10) / "adapter_model.safetensors")
    assert kept.newest() is None
    assert capsys.readouterr().out == (
        "train: starts from the beginning; not intact, so skipped: "
        "checkpoint-30 (checkpoint-10, the best one before it: adapter_model.safetensors has changed), "
        "checkpoint-10 (adapter_model.safetensors has changed)\n"
    )
    assert names(tmp_path) == ["writing"]


def test_a_lost_best_is_named(kept, capsys):
    shutil.rmtree(kept.path(10))
    assert kept.newest() is None
    assert "checkpoint-30 (checkpoint-10, the best one before it: missing)" in capsys.readouterr().out


def test_a_checkpoint_that_changed_after_it_was_read_is_refused(kept):
    kept.check(10)
    flip(kept.path(10) / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"checkpoint-10: adapter_model.safetensors has changed, though this run wrote"):
        kept.check(10)


def test_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        save(tmp_path, 10, best=10)
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in Checkpoints(tmp_path).path(10).iterdir()}
    assert modes == {0o640}


def three_saves():
    for step in (10, 20, 30):
        save(Path("run"), step, best=10)


def test_a_death_at_any_operation_leaves_the_checkpoint_before_or_the_new_one(tmp_path):
    """Each of about a hundred."""
    (tmp_path / "counted").mkdir()
    done = deaths.operations(tmp_path / "counted", three_saves)
    assert {"fsync", "os.rename run/writing/checkpoint-20"} <= set(done)
    published = [number for number, operation in enumerate(done, start=1) if operation.startswith("os.rename")]
    assert len(published) == 3
    for number in range(1, len(done) + 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        deaths.die(folder, three_saves, number)
        newest = Checkpoints(folder / "run").newest()
        count = sum(at < number for at in published)
        assert newest == (folder / f"run/checkpoint-{10 * count}" if count else None), done[number - 1]
