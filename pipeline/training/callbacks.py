"""Callbacks of the Trainer: progress, stopping at divergence, and which checkpoints are kept, even if it is killed."""

import math
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from pipeline.core import artifacts
from pipeline.core.console import Advance
from pipeline.core.errors import UserError
from pipeline.training import checkpoints

LOSSES = {"loss": "loss", "eval_loss": "validation loss", "train_loss": "mean loss"}  # in the Trainer's log
ASIDE = "writing"  # the folder of a run's checkpoints in which the Trainer writes them; nothing is read from there


class DivergedError(UserError):
    """A training run whose loss is infinite or NaN."""


class Progress(TrainerCallback):
    """Advances a progress bar at each optimizer step, and shows loss and learning rate in it."""

    def __init__(self, advance: Advance) -> None:
        self.advance = advance

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Count the steps that a resumed run has already done."""
        self.advance(state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Count one step."""
        self.advance(1)

    def on_log(self, args: Any, state: TrainerState, control: Any, **given: Any) -> None:
        """Show the mean loss since the last log, and the learning rate of the first group: the adapter's, if any."""
        if "loss" in (logs := given["logs"]):
            self.advance(0, f"loss {logs['loss']:.3g}, lr {logs['learning_rate']:.3g}")


class StopAtDivergence(TrainerCallback):
    """Stops a run whose loss is infinite or NaN: it could not recover."""

    def on_log(self, args: Any, state: TrainerState, control: Any, **given: Any) -> None:
        """Check the losses: those of some steps, of the validation split, and at the end the mean over all steps.

        Raises:
            DivergedError: if one is infinite or NaN.
        """
        for key, name in LOSSES.items():
            loss = given["logs"].get(key, 0.0)
            if not math.isfinite(loss):
                raise DivergedError(
                    f"train: the {name} is {loss} after {state.global_step} steps: lower the learning rate"
                )


class LaterOfEquals(TrainerCallback):
    """Among checkpoints with the best score, keeps the one with the lowest validation loss, and the last if several.

    The Trainer keeps the first. It compares scores right after an evaluation, so forgetting the best score here makes
    it take the new checkpoint. Step and loss of the best are in the Trainer's state, which a resumed run reads.
    """

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **given: Any) -> None:
        """Compare with the best evaluation so far."""
        metrics = given["metrics"]
        if metrics["eval_score"] != state.best_metric:
            return
        losses = {entry["step"]: entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry}
        if state.best_global_step is not None and metrics["eval_loss"] <= losses[state.best_global_step]:
            state.best_metric = None


class StopWithoutGain(TrainerCallback):
    """Stops a run after so many epochs of `patience` without a better validation score.

    transformers' EarlyStoppingCallback counts by itself, which a resumed run forgets; here the Trainer's state counts.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_save(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Decide after an epoch."""
        if lacks_gain(state, self.patience):
            control.should_training_stop = True


def lacks_gain(state: TrainerState, patience: int) -> bool:
    """Return whether as many epochs as `patience` says came after the first with the best score."""
    scores = [entry["eval_score"] for entry in state.log_history if "eval_score" in entry]
    return len(scores) - 1 - scores.index(max(scores)) >= patience


class KeepComplete(TrainerCallback):
    """Renames complete checkpoints, which the Trainer writes aside, into place; keeps the last one and the best one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Tell a resumed run where its best checkpoint is: the path in its state is where it was written."""
        self._point_to_best(state)

    def on_save(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Move the new checkpoint into place once all processes have written their part of it."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            path = self._path_of(state.global_step)
            artifacts.remove(path)  # one that a power cut has torn
            checkpoints.seal(self.folder / ASIDE / path.name).rename(path)
            checkpoints.sync(self.folder)
            kept = {self._path_of(step) for step in (state.global_step, state.best_global_step) if step}
            for other in set(self.folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")) - kept:
                artifacts.remove(other)
        PartialState().wait_for_everyone()
        self._point_to_best(state)

    def _point_to_best(self, state: TrainerState) -> None:
        if state.best_global_step is not None:
            state.best_model_checkpoint = str(self._path_of(state.best_global_step))

    def _path_of(self, step: int) -> Path:
        return checkpoints.path_of(self.folder, step)
