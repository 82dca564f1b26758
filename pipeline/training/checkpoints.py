"""The checkpoints of a training run: their folder, which are kept, and which are complete.

A kill or a power cut can leave empty, truncated or corrupt files. So a checkpoint is used only if its files have the
checksums that were written after all of them were on the disk; any other checkpoint is replaced.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState
from filelock import FileLock
from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints

from pipeline.core import artifacts, console, digests
from pipeline.data import inputs
from pipeline.params import TrainView, load

CHECKSUMS = "checksums.json"  # checksums of a checkpoint's other files; written last, it marks the checkpoint complete


@contextmanager
def run_folder(view: TrainView) -> Iterator[Path]:
    """Yield the folder for a run's checkpoints, removed when the run succeeds and its inputs have not changed.

    Another run with the same inputs, such as an experiment in a temporary copy, waits until then. Of the processes of
    one run, the first one holds the folder for all.
    """
    folder = checkpoint_folder(view)
    if not console.IS_FIRST:
        yield folder
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        with artifacts.name_path_on_error(folder):
            yield folder
        if checkpoint_folder(load(TrainView)) == folder:  # otherwise the stage fails, and can go on from its last epoch
            artifacts.remove(folder)


def checkpoint_folder(view: TrainView) -> Path:
    """Return the folder named by a hash of everything that determines the result, so that only equal runs resume.

    `train.report_to` does not determine the result and is never dumped. DVC deletes the outs of a stage before running
    it, and runs experiments in temporary copies, so the folder is not an out and is in the original repository.
    """
    checksums = {name: digests.sha256(path) for name, path in inputs.files("train")}
    known = [view.model_dump(mode="json"), checksums]
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    return artifacts.repository() / ".checkpoints" / digest.hexdigest()[:16]


class Keep(TrainerCallback):
    """Marks each checkpoint complete, and keeps the last and the best one.

    Among equal scores, the best has the lowest validation loss; further ties go to the last checkpoint. The Trainer
    would take the first. It compares scores right after an evaluation, so resetting the best score here makes it choose
    the new checkpoint. The Trainer's state stores step and loss of the best for a resumed run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        # After resuming, the path in the state is the one at which it was written.
        if state.best_global_step is not None:
            state.best_model_checkpoint = str(path_of(self.folder, state.best_global_step))

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **given: Any) -> None:
        metrics = given["metrics"]
        best = state.best_global_step
        if not best or metrics["eval_score"] != state.best_metric:
            return
        losses = {entry["step"]: entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry}
        if metrics["eval_loss"] <= losses[best]:
            state.best_metric = None

    def on_save(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        PartialState().wait_for_everyone()  # all have written their part of it
        if state.is_world_process_zero:
            seal(path_of(self.folder, state.global_step))
            steps = (state.global_step, state.best_global_step)
            kept = [path_of(self.folder, step) for step in steps if step]
            for path in self.folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
                if path not in kept:
                    artifacts.remove(path)
        PartialState().wait_for_everyone()


def path_of(folder: Path, step: int) -> Path:
    """Return the checkpoint of a step."""
    return folder / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def seal(checkpoint: Path) -> None:
    """Flush all files of a checkpoint to the disk, then write their SHA-256, which marks it complete.

    Hashing takes 0.7 seconds per GB, in addition to the time of the disk.
    """
    sealed = checkpoint / CHECKSUMS
    _wait_for_disk(_files(checkpoint))
    checksums = _checksums(checkpoint)
    sealed.write_text(json.dumps(checksums), encoding="utf-8")
    folders = [path for path in checkpoint.rglob("*") if path.is_dir()]
    # The names of files are in their folders, which must be on the disk, too.
    _wait_for_disk([sealed, *folders, checkpoint, checkpoint.parent])


def newest(folder: Path) -> Path | None:
    """Return a run's newest complete checkpoint whose best checkpoint is complete, too.

    Incomplete newer ones are removed with a warning. Nothing is unpickled before checksums are verified. The first
    process of a run does this before the others.
    """
    with PartialState().main_process_first():
        return _newest(folder)


def _newest(folder: Path) -> Path | None:
    for path in map(Path, reversed(sort_checkpoints(str(folder)))):
        if _is_whole(path):
            best = state_of(path).best_global_step
            if best is None or _is_whole(path_of(folder, best)):
                return path
        console.warn(f"{path}: incomplete checkpoint (killed or power loss), skipped")
        if console.IS_FIRST:  # whatever is left in it might be read when it is written again
            artifacts.remove(path)
    return None


def state_of(checkpoint: Path) -> TrainerState:
    """Return the Trainer's state in a checkpoint."""
    return TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))


def _is_whole(checkpoint: Path) -> bool:
    sealed = checkpoint / CHECKSUMS
    if not sealed.is_file():
        return False
    try:
        return json.loads(sealed.read_text(encoding="utf-8")) == _checksums(checkpoint)
    except (OSError, ValueError, RecursionError):
        return False


def _checksums(checkpoint: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a checkpoint by relative name."""
    return {path.relative_to(checkpoint).as_posix(): digests.sha256(path) for path in _files(checkpoint)}


def _files(checkpoint: Path) -> list[Path]:
    """Return the regular files of a checkpoint in order, without the file of checksums."""
    sealed = checkpoint / CHECKSUMS
    return [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path != sealed]


def _wait_for_disk(paths: Iterable[Path]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
