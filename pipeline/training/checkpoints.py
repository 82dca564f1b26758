"""Which checkpoints are whole: a power cut can leave files that are empty or cut off, whatever their names say."""

import json
import os
from pathlib import Path

from transformers import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from pipeline.core import console

STATE = "trainer_state.json"  # the Trainer's
SIZES = "sizes.json"  # of a checkpoint's other files


def path_of(folder: Path, step: int) -> Path:
    """Return the checkpoint of a step."""
    return folder / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def seal(checkpoint: Path) -> Path:
    """Note the sizes of a checkpoint's files, wait until the disk has them all, and return its path."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    sizes = {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}
    (checkpoint / SIZES).write_text(json.dumps(sizes), encoding="utf-8")
    for path in (*files, checkpoint / SIZES, checkpoint):
        sync(path)
    return checkpoint


def sync(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def newest(folder: Path) -> Path | None:
    """Return the newest checkpoint of a run that is whole, as is the best one that it names; warn of newer ones."""
    found = folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    steps = sorted((int(path.name.rpartition("-")[2]) for path in found), reverse=True)
    for path in (path_of(folder, step) for step in steps):
        if _is_whole(path):
            best = state_of(path).best_global_step
            if best is None or _is_whole(path_of(folder, best)):
                return path
        console.warn(f"{path}: torn, perhaps by a power cut, so training does not go on from there")
    return None


def state_of(checkpoint: Path) -> TrainerState:
    """Return the Trainer's state in a checkpoint."""
    return TrainerState.load_from_json(str(checkpoint / STATE))


def _is_whole(checkpoint: Path) -> bool:
    try:
        sizes = json.loads((checkpoint / SIZES).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False
