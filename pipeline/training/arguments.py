"""What transformers' Trainer needs: its arguments, parameter groups and metrics; and the curves in its log."""

import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import nn
from transformers import EvalPrediction, TrainingArguments

from pipeline import ranks
from pipeline.core.errors import UserError
from pipeline.evaluation import scores
from pipeline.evaluation.answers import answers
from pipeline.methods import adapters, device, table
from pipeline.params import PARAMS, FullParams, TrainParams, TrainView
from pipeline.params.rows import DatasetRow
from pipeline.training import trackers

LOGS_A_RUN = 100  # points of the loss curve


def training_arguments(view: TrainView, steps_an_epoch: int, folder: Path) -> TrainingArguments:
    """Translate our train section into the Trainer's arguments; all reporting is disabled."""
    # A single process splits a batch over all visible GPUs; with several, each reads the whole batch (see shares.py).
    devices = max(1, torch.cuda.device_count()) if ranks.size() == 1 else 1
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=view.train.epochs,
        per_device_train_batch_size=max(1, view.train.batch_size // devices),
        per_device_eval_batch_size=4 * view.train.batch_size,
        warmup_steps=round(view.train.warmup_share * view.train.epochs * steps_an_epoch),
        lr_scheduler_type="linear",
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=True,
        use_cpu=device.fastest().type == "cpu",  # otherwise bf16 is rejected without a GPU
        bf16=view.train.precision == "bf16",
        fp16=view.train.precision == "fp16",
        torch_compile=view.train.compile,
        logging_steps=max(1, view.train.epochs * steps_an_epoch // LOGS_A_RUN),
        logging_nan_inf_filter=False,  # the filter waits for the loss of every step, and hides NaN and inf
        seed=view.seed,
        data_seed=view.seed,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=isinstance(view.section, FullParams),  # in adapters and heads none are unused
    )


def check_machine(train: TrainParams) -> None:
    """Check that this machine and these processes can train as configured, before anything is loaded.

    That includes the packages of the trackers.

    Raises:
        UserError: if they cannot; says what is possible.
    """
    on_gpu = torch.cuda.is_available()
    if train.precision == "fp16" and not on_gpu:
        raise UserError(f"{PARAMS}: train.precision: fp16 needs a GPU, and there is none; fp32 and bf16 do not")
    if train.precision == "bf16" and on_gpu and not torch.cuda.is_bf16_supported():
        raise UserError(f"{PARAMS}: train.precision: this GPU has no bf16; fp32 and fp16 run on it")
    compiler = "triton" if on_gpu else os.environ.get("CXX", "g++")
    if train.compile and not (importlib.util.find_spec(compiler) if on_gpu else shutil.which(compiler)):
        raise UserError(f"{PARAMS}: train.compile: torch.compile needs {compiler}, which is not installed")
    chosen = {name: os.environ.get(f"ACCELERATE_USE_{name}", "").lower() for name in ("FSDP", "DEEPSPEED")}
    if sharded := [name for name, word in chosen.items() if word == "true"]:
        raise UserError(
            f"train: {sharded[0]} is not supported: each process holds the whole model; start it by torchrun, or by "
            "accelerate launch --multi_gpu without it"
        )
    trackers.check(train)
    if train.batch_size % ranks.size():
        able = [str(count) for count in range(1, train.batch_size + 1) if train.batch_size % count == 0]
        raise UserError(
            f"{PARAMS}: train.batch_size: {train.batch_size} examples per step cannot be divided equally among "
            f"{ranks.size()} processes; these numbers of processes can: {', '.join(able)}"
        )


def optimizer(model: PeftModel, view: TrainView) -> torch.optim.AdamW:
    """Return AdamW with separate learning rates for adapter and head, and no weight decay of biases and norms."""
    head_rate = view.train.head_learning_rate
    no_decay = {id(p) for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    in_head = adapters.head_parameters(model, view.base_model)
    method = table.row_of(view.section)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_kept = name.endswith(".bias") or any(part in name for part in method.undecayed)
            decays = not is_kept and id(parameter) not in no_decay
            rate = None if id(parameter) in in_head else method.rate(view.section, name)
            key = (head_rate if rate is None else rate, view.train.weight_decay if decays else 0.0)
            groups.setdefault(key, []).append(parameter)
    listed = [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]
    return torch.optim.AdamW(listed, foreach=True)  # a third of the time that many small tensors take one by one


def scorer(row: DatasetRow, groups: NDArray[np.int64] | None = None) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return the Trainer's metrics function: the task's official metrics, with the first one repeated as `score`.

    `groups` holds the group number of each validation example if examples are scored in groups.
    """

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        found = scores.score(
            row.metrics, *answers(np.asarray(prediction.predictions), np.asarray(prediction.label_ids), row, groups)
        )
        return {"score": found[row.metrics[0]], **found}

    return compute


def curves(history: Sequence[dict[str, float]]) -> dict[str, list[tuple[int, float]]]:
    """Return the Trainer's log as one series per name: (optimizer step, value)."""
    names = {"loss": "loss", "eval_loss": "validation_loss", "eval_score": "validation_score"}
    return {
        series: [(int(entry["step"]), float(entry[key])) for entry in history if key in entry]
        for key, series in names.items()
    }
