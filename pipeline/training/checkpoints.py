"""Checkpoints that survive a kill: the Trainer writes each one aside, and a complete one is renamed into place."""

from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from pipeline.core import artifacts


def aside(folder: Path) -> Path:
    """Return where the Trainer writes the checkpoints of a run; nothing is read from there."""
    return folder / "writing"


def path_of(folder: Path, step: int) -> Path:
    """Return the complete checkpoint of an optimizer step."""
    return folder / f"{PREFIX_CHECKPOINT_DIR}-{step}"


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
            kept = {path_of(self.folder, step) for step in (state.global_step, state.best_global_step) if step}
            for other in set(self.folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")) - kept:
                artifacts.remove(other)
        PartialState().wait_for_everyone()
        self._point_to_best(state)

    def _point_to_best(self, state: TrainerState) -> None:
        if state.best_global_step is not None:
            state.best_model_checkpoint = str(path_of(self.folder, state.best_global_step))
