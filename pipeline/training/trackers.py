"""The trackers of `train.report_to`: transformers' own integrations, writing into runs/ and sending nothing by default.

Their own environment variables determine where they write and whether they connect; those that are already set are
kept. runs/ lies in the original repository, because the temporary copy of an experiment is removed. It is no DVC out.
"""

import importlib.util
import os
import re
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import DVCLiveCallback, get_reporting_integration_callbacks

from pipeline import ranks
from pipeline.core import artifacts
from pipeline.core.errors import UserError
from pipeline.params import PARAMS, TrainParams, TrainView

FOLDER = "runs"
PROJECT = "lsr-adapt"
BESIDE = {"mlflow": ("sqlalchemy", "alembic")}  # further packages in the extra with a tracker's name
DIGITS = 8  # of the hash of all inputs, to distinguish runs with the same name otherwise


def check(train: TrainParams) -> None:
    """Check that the packages of the trackers are installed.

    Raises:
        UserError: if one is not; names the extra to install.
    """
    for word in _words(train):
        missing = [name for name in (word, *BESIDE.get(word, ())) if importlib.util.find_spec(name) is None]
        if missing:
            install = f"install it with: pip install 'lsr-adapt[{word}]'"
            raise UserError(f"{PARAMS}: train.report_to: {word}: {missing[0]} is not installed; {install}")


def run_name(view: TrainView, digest: str) -> str:
    """Return the name of a run in trackers: the DVC experiment, if any, the data, model and adapter, seed and hash."""
    words = (os.environ.get("DVC_EXP_NAME"), view.data, view.model, view.adapter, f"seed{view.seed}", digest[:DIGITS])
    return "-".join(re.sub(r"[^\w.]+", "-", str(word)) for word in words if word)


def callbacks(train: TrainParams, run: str) -> list[TrainerCallback]:
    """Return the callbacks of the trackers, after setting where they write a run with this name."""
    words = _words(train)
    if not words:
        return []
    folder = (artifacts.repository() / FOLDER).resolve()
    for name, value in environment(folder, run).items():
        os.environ.setdefault(name, value)
    if ranks.is_first():
        folder.mkdir(parents=True, exist_ok=True)  # otherwise wandb writes elsewhere
    made = zip(words, get_reporting_integration_callbacks(words), strict=True)
    return [_DvcLive(folder / "dvclive" / run) if word == "dvclive" else kind() for word, kind in made]


def environment(folder: Path, run: str) -> dict[str, str]:
    """Return the environment variables that trackers read, with our defaults."""
    return {
        "TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard" / run),
        "WANDB_DIR": str(folder),  # it adds wandb/
        "WANDB_MODE": "offline",
        "WANDB_PROJECT": PROJECT,
        "WANDB_ERROR_REPORTING": "false",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLFLOW_EXPERIMENT_NAME": PROJECT,
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


class _DvcLive(DVCLiveCallback):
    """Writes into a folder of its own: by default it would change dvc.yaml and make a DVC experiment of the run."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def setup(self, args: TrainingArguments, state: TrainerState, model: Any) -> None:
        """Start, or continue where a resumed run was."""
        if state.is_world_process_zero:
            from dvclive.live import Live

            resume = state.global_step > 0
            self.live = Live(str(self.folder), resume=resume, dvcyaml=None, save_dvc_exp=False)
        super().setup(args, state, model)


def _words(train: TrainParams) -> list[str]:
    return [word for word in train.report_to if word != "none"]
