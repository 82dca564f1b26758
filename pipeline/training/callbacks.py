"""Callbacks of the Trainer that watch a training: progress, trackers, and when it ends before its last epoch."""

import math
import os
from typing import Any

from transformers import TrainerCallback, TrainerState
from transformers.integrations.integration_utils import DVCLiveCallback

from pipeline.core import artifacts, console
from pipeline.core.console import Advance
from pipeline.core.errors import UserError
from pipeline.params import TrainView

LOSSES = {"loss": "loss", "eval_loss": "validation loss", "train_loss": "mean loss"}  # in the Trainer's log
DVCLIVE = "dvclive"


class DivergedError(UserError):
    """A training run whose loss is infinite or NaN."""


class Progress(TrainerCallback):
    """Advances a progress bar at each optimizer step, and shows in it the mean loss since the last log.

    The learning rate beside it is that of the first group: the adapter's, if any.
    """

    def __init__(self, advance: Advance) -> None:
        self.advance = advance

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self.advance(state.global_step)  # those that a resumed run has already done

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self.advance(1)

    def on_log(self, args: Any, state: TrainerState, control: Any, **given: Any) -> None:
        if "loss" in (logs := given["logs"]):
            self.advance(0, f"loss {logs['loss']:.3g}, lr {logs['learning_rate']:.3g}")


class StopAtDivergence(TrainerCallback):
    """Stops a run when a loss is infinite or NaN: it could not recover.

    That is one of some steps, of the validation split, or at the end the mean over all steps.
    """

    def on_log(self, args: Any, state: TrainerState, control: Any, **given: Any) -> None:
        for key, name in LOSSES.items():
            loss = given["logs"].get(key, 0.0)
            if not math.isfinite(loss):
                raise DivergedError(
                    f"train: the {name} is {loss} after {state.global_step} steps: lower the learning rate"
                )


class StopWithoutGain(TrainerCallback):
    """Stops a run after so many epochs of `patience` without a better validation score.

    transformers' EarlyStoppingCallback counts by itself, which a resumed run forgets; here the Trainer's state counts.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_save(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        control.should_training_stop |= lacks_gain(state, self.patience)


def lacks_gain(state: TrainerState, patience: int) -> bool:
    """Return whether as many epochs as `patience` says came after the first with the best score."""
    scores = [entry["eval_score"] for entry in state.log_history if "eval_score" in entry]
    return len(scores) - 1 - scores.index(max(scores)) >= patience


def trackers(view: TrainView) -> list[TrainerCallback]:
    """Have the trackers of train.report_to write into runs/ and send nothing, unless the environment says more.

    Returns:
        The callback of DVCLive: transformers' own would write a dvc.yaml and save an experiment.
    """
    if not view.train.report_to:
        return []
    folder = (artifacts.repository() / "runs").resolve()
    defaults = {
        "TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard"),
        "WANDB_DIR": str(folder),
        "WANDB_MODE": "offline",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "DVC_STUDIO_OFFLINE": "true",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if DVCLIVE not in view.train.report_to or not console.IS_FIRST:
        return []
    from dvclive.live import Live

    return [DVCLiveCallback(Live(str(folder / DVCLIVE / name_of(view)), dvcyaml=None, save_dvc_exp=False), False)]


def name_of(view: TrainView) -> str:
    """Return the name of a run for trackers."""
    return f"{view.data}-{view.model}-{view.adapter}-seed{view.seed}"
