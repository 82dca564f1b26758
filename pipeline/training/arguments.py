"""What transformers' Trainer needs: its arguments, parameter groups, trackers and metrics."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import nn
from transformers import EvalPrediction, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import DVCLiveCallback

from pipeline import tasks
from pipeline.core import artifacts, console
from pipeline.core.errors import UserError
from pipeline.methods import adapters, device
from pipeline.params import PARAMS, FullParams, TrainView
from pipeline.params.sections import TrainParams
from pipeline.tasks import Outcome, Task
from pipeline.training import processes

DVCLIVE = "dvclive"
LOGS_A_RUN = 100  # points of the loss curve


def training_arguments(view: TrainView, steps_an_epoch: int, folder: Path) -> TrainingArguments:
    """Translate our train section into the Trainer's arguments."""
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=view.train.epochs,
        per_device_train_batch_size=max(1, view.train.batch_size // processes.shares()),
        per_device_eval_batch_size=(4 if tasks.of(view.dataset).head() else 1) * view.train.batch_size,
        warmup_steps=round(view.train.warmup_share * view.train.epochs * steps_an_epoch),
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="score",
        use_cpu=device.fastest().type == "cpu",  # otherwise bf16 is rejected without a GPU
        bf16=view.train.precision == "bf16",
        fp16=view.train.precision == "fp16",
        torch_compile=view.train.compile,
        logging_steps=steps_a_log(view.train.epochs, steps_an_epoch),
        logging_nan_inf_filter=False,  # the filter waits for the loss of every step, and hides NaN and inf
        seed=view.seed,
        data_seed=view.seed,
        report_to=[word for word in view.train.report_to if word != DVCLIVE],
        run_name=name_of(view),
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=isinstance(view.section, FullParams),  # in adapters and heads none are unused
    )


def steps_a_log(epochs: int, steps_an_epoch: int) -> int:
    """Return over how many steps a logged loss is averaged, for some LOGS_A_RUN of them.

    It divides an epoch: at each there is a checkpoint, and a run that goes on from there begins a new mean.
    """
    wanted = max(1, min(epochs, LOGS_A_RUN) * steps_an_epoch // LOGS_A_RUN)
    return next(steps for steps in range(wanted, steps_an_epoch + 1) if steps_an_epoch % steps == 0)


def name_of(view: TrainView) -> str:
    """Return the name of a run for trackers."""
    return f"{view.data}-{view.model}-{view.adapter}-seed{view.seed}"


def check_machine(train: TrainParams) -> None:
    """Check that this machine and these processes can train as configured, before anything is loaded.

    Raises:
        UserError: if they cannot; says what is possible.
    """
    if train.precision == "fp16" and not torch.cuda.is_available():
        raise UserError(f"{PARAMS}: train.precision: fp16 needs a GPU, and there is none; fp32 and bf16 do not")
    if train.precision == "bf16" and not has_fast_bf16():
        console.warn("train: this machine has no instructions for bf16, so train.precision: fp32 would be faster")
    for word in train.report_to:
        if importlib.util.find_spec(word) is None:
            install = f"install it with: pip install 'lsr-adapt[{word}]'"
            raise UserError(f"{PARAMS}: train.report_to: {word} is not installed; {install}")
    shares = max(train.processes, processes.shares())
    if train.batch_size % shares:
        raise UserError(
            f"{PARAMS}: train.batch_size: {train.batch_size} examples per step cannot be divided equally among "
            f"{shares} processes or GPUs"
        )


def has_fast_bf16() -> bool:
    """Say whether this machine has instructions for products in bf16."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


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


def optimizer(model: PeftModel, view: TrainView) -> torch.optim.AdamW:
    """Return AdamW with separate learning rates for adapter and head, and no weight decay of biases and norms."""
    head_rate = view.train.head_learning_rate
    norms = (module for module in model.modules() if type(module).__name__.endswith("Norm"))
    no_decay = {id(parameter) for norm in norms for parameter in norm.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    in_head = adapters.head_parameters(model, view.base_model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_kept = name.endswith(".bias") or any(part in name for part in adapters.UNDECAYED)
            decays = not is_kept and id(parameter) not in no_decay
            rate = None if id(parameter) in in_head else adapters.rate_of(view.section, name)
            key = (head_rate if rate is None else rate, view.train.weight_decay if decays else 0.0)
            groups.setdefault(key, []).append(parameter)
    listed = [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]
    return torch.optim.AdamW(listed, foreach=True)  # a third of the time that many small tensors take one by one


def scores(
    task: Task, groups: NDArray[np.int64] | None, more: Callable[[], dict[str, float]], prediction: EvalPrediction
) -> dict[str, float]:
    """Return the official metrics of a validation split and `more` for the Trainer, the one that chooses as `score`."""
    outputs, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    outcome = Outcome(torch.from_numpy(outputs), labels, groups)
    task.settle(outcome)
    found = task.scores(outcome) | more()
    return {"score": found[task.selects], **found}
