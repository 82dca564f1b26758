"""The trackers of `train.report_to`: transformers' own integrations, writing into runs/ and sending nothing by default.

Where they write and whether they connect is said by environment variables of their own; one that is set already counts.
runs/ lies in the original repository, as an experiment's temporary copy is removed. What they write is no out of DVC's.
"""

import importlib.util
import os
import re
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import DVCLiveCallback, get_reporting_integration_callbacks

from pipeline import artifacts, ranks
from pipeline.errors import UserError
from pipeline.params import PARAMS, TrainParams, TrainView

FOLDER = "runs"
PROJECT = "lsr-adapt"
BESIDE = {"mlflow": ("sqlalchemy", "alembic")}  # what else the extra with a tracker's name brings
DIGITS = 8  # of the hash of all that determines the result, which tell runs of the same words apart


def check(train: TrainParams) -> None:
    """Check that the trackers' packages are there.

    Raises:
        UserError: if one is not; says which extra brings it.
    """
    for word in _words(train):
        missing = [name for name in (word, *BESIDE.get(word, ())) if importlib.util.find_spec(name) is None]
        if missing:
            install = f"install what it needs with: pip install 'lsr-adapt[{word}]'"
            raise UserError(f"{PARAMS}: train.report_to: {word}: {missing[0]} is not installed; {install}")


def run_name(view: TrainView, digest: str) -> str:
    """Return what trackers call a run: DVC's name of the experiment if there is one, the chosen words, the hash."""
    words = (os.environ.get("DVC_EXP_NAME"), view.data, view.model, view.adapter, f"seed{view.seed}", digest[:DIGITS])
    return "-".join(re.sub(r"[^\w.]+", "-", str(word)) for word in words if word)


def callbacks(train: TrainParams, run: str) -> list[TrainerCallback]:
    """Return the callbacks of the trackers, once the environment says where a run with this name is written."""
    words = _words(train)
    if not words:
        return []
    folder = (artifacts.repository() / FOLDER).resolve()
    for name, value in environment(folder, run).items():
        os.environ.setdefault(name, value)
    if ranks.is_first():
        folder.mkdir(parents=True, exist_ok=True)  # else wandb writes elsewhere
    made = zip(words, get_reporting_integration_callbacks(words), strict=True)
    return [_DvcLive(folder / "dvclive" / run) if word == "dvclive" else kind() for word, kind in made]


def environment(folder: Path, run: str) -> dict[str, str]:
    """Return the variables that trackers read, and what they say unless a user has set them."""
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
        """Begin, or go on where a resumed run was."""
        if state.is_world_process_zero:
            from dvclive.live import Live

            resume = state.global_step > 0
            self.live = Live(str(self.folder), resume=resume, dvcyaml=None, save_dvc_exp=False)
        super().setup(args, state, model)


def _words(train: TrainParams) -> list[str]:
    return [word for word in train.report_to if word != "none"]
