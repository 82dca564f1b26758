"""Checkpoints that survive a kill: written aside, with a checksum of every file, renamed, and verified before use.

The Trainer writes into `Checkpoints.aside`; `KeepWhole` then moves the checkpoint into place.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from pipeline import ranks
from pipeline.core import artifacts, console
from pipeline.core.errors import UserError

SUMS = "SHA256SUMS"  # in the form that `sha256sum --check` reads
NAME = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")


class Checkpoints:
    """The checkpoints of one run, by optimizer step: the last one, and the best one if it is another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def aside(self) -> Path:
        """The folder where checkpoints are written; nothing is read from it."""
        return self.folder / "writing"

    def path(self, step: int) -> Path:
        """Return the path of the complete checkpoint of a step."""
        return self.folder / f"{PREFIX_CHECKPOINT_DIR}-{step}"

    def publish(self, step: int) -> None:
        """Move the checkpoint of a step from aside into place."""
        written = self.aside / self.path(step).name
        (written / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle that nothing reads
        artifacts.follow_umask(written)
        seal(written)
        written.rename(self.path(step))
        _sync(self.folder)

    def keep(self, *steps: int) -> None:
        """Remove the checkpoints of other steps."""
        for step in set(self._steps()) - set(steps):
            artifacts.remove(self.path(step))

    def newest(self) -> Path | None:
        """Return the last intact checkpoint, or None. Later ones are removed, with a warning that says why."""
        skipped, found = [], None
        for step in sorted(self._steps(), reverse=True):
            problem = self._problem(step)
            if problem is None:
                found = self.path(step)
                break
            skipped.append(f"{self.path(step).name} ({problem})")
            artifacts.remove(self.path(step))
        if skipped:
            start = "starts from the beginning" if found is None else f"goes on from {found.name}"
            console.warn(f"train: {start}; not intact, so skipped: {', '.join(skipped)}")
        return found

    def check(self, step: int) -> None:
        """Check that the checkpoint of a step, which has been read, is intact.

        Raises:
            UserError: if it is not, because what was read may be wrong.
        """
        problem = _problem(self.path(step))
        if problem is not None:
            raise UserError(f"train: {self.path(step)}: {problem}, though this run wrote it; start the stage again")

    def _steps(self) -> Iterator[int]:
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if name := NAME.fullmatch(path.name):
                yield int(name[1])

    def _problem(self, step: int) -> str | None:
        """Return why training cannot resume from a step: its checkpoint, or the best one before it, is not intact."""
        problem = _problem(self.path(step))
        if problem is not None:
            return problem
        best = _best_step(self.path(step))
        problem = _problem(self.path(best))
        return problem and f"{self.path(best).name}, the best one before it: {problem}"


class KeepWhole(TrainerCallback):
    """Moves checkpoints that the Trainer has written aside into place."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Tell a resumed run where its best checkpoint is."""
        self._point_to_best(state)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the new checkpoint into place, and remove those that are neither last nor best."""
        state.best_model_checkpoint = None  # a path in the file would be wrong once the folder is moved
        if ranks.is_first():
            written = self.checkpoints.aside / self.checkpoints.path(state.global_step).name
            state.save_to_json(str(written / TRAINER_STATE_NAME))
            self.checkpoints.publish(state.global_step)
            self.checkpoints.keep(state.global_step, state.best_global_step or state.global_step)
        ranks.wait()
        self._point_to_best(state)

    def _point_to_best(self, state: TrainerState) -> None:
        if state.best_global_step is not None:
            state.best_model_checkpoint = str(self.checkpoints.path(state.best_global_step))


def seal(folder: Path) -> None:
    """Write the checksums of a folder's files, and flush everything from the system's memory to the disk."""
    lines = [f"{_digest(path)}  {name}\n" for name, path in sorted(_files(folder).items())]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
    for path in (*_files(folder).values(), folder / SUMS, folder):
        _sync(path)


def _problem(folder: Path) -> str | None:
    """Return what is wrong with a folder, or None if its files match its checksums."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        digests = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
        files = _files(folder)
        if TRAINER_STATE_NAME not in digests:
            return f"{SUMS} is truncated"
        for name in sorted(digests.keys() | files.keys()):
            if name not in files:
                return f"{name} is missing"
            if name not in digests:
                return f"{name} is unexpected"
            if _digest(files[name]) != digests[name]:
                return f"{name} has changed"
    except FileNotFoundError:
        return f"{SUMS} is missing" if folder.is_dir() else "missing"
    except ValueError:
        return f"{SUMS} has changed"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None


def _files(folder: Path) -> dict[str, Path]:
    """Return all files in a folder except the checksums, by relative name."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    return {name: path for name, path in found.items() if name != SUMS}


def _best_step(folder: Path) -> int:
    """Return the step of the best checkpoint so far, according to an intact checkpoint."""
    state = json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    return int(state["global_step"] if state["best_global_step"] is None else state["best_global_step"])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
