"""Checkpoints that survive a kill: the Trainer writes each one aside, and a complete one is renamed into place."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from pipeline.core import artifacts

NAME = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")


def aside(folder: Path) -> Path:
    """Return where the Trainer writes the checkpoints of a run; nothing is read from there."""
    return folder / "writing"


def path_of(folder: Path, step: int) -> Path:
    """Return the complete checkpoint of an optimizer step."""
    return folder / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def newest(folder: Path) -> Path | None:
    """Return the last complete checkpoint, or None."""
    steps = list(_steps(folder))
    return path_of(folder, max(steps)) if steps else None


def _steps(folder: Path) -> Iterator[int]:
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if name := NAME.fullmatch(path.name):
            yield int(name[1])


class KeepComplete(TrainerCallback):
    """Renames complete checkpoints into place, and keeps the last one and the best one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Tell a resumed run where its best checkpoint is: the path in its state is where it was written."""
        self._point_to_best(state)

    def on_save(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Move the new checkpoint into place once all processes have written their part of it."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            path = path_of(self.folder, state.global_step)
            (aside(self.folder) / path.name).rename(path)
            for step in set(_steps(self.folder)) - {state.global_step, state.best_global_step}:
                artifacts.remove(path_of(self.folder, step))
        PartialState().wait_for_everyone()
        self._point_to_best(state)

    def _point_to_best(self, state: TrainerState) -> None:
        if state.best_global_step is not None:
            state.best_model_checkpoint = str(path_of(self.folder, state.best_global_step))
