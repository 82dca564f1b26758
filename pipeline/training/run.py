"""Build the Trainer with its arguments and callbacks, for the stage train and the arena."""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import Sampler, SequentialSampler
from transformers import (
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.integration_utils import DVCLiveCallback
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from pipeline import evaluation, tasks
from pipeline.core import artifacts, console
from pipeline.core.console import Advance
from pipeline.core.errors import UserError
from pipeline.data import base_models, tokens
from pipeline.methods import adapters
from pipeline.methods.batches import tokenizer_of
from pipeline.methods.device import fastest
from pipeline.params import PARAMS, FullParams, TrainView, effects
from pipeline.params.sections import MIN_STEPS, TENANT_EPOCHS, TENANT_STEPS, enough_epochs
from pipeline.tasks import Outcome, Task
from pipeline.tasks.prompts import Prompts
from pipeline.tasks.scoring import choose_selection_metric
from pipeline.tasks.task import Scores
from pipeline.training import checkpoints, processes

LOGS_A_RUN = 100  # points of the loss curve
# Names of curves by key in the Trainer's log.
LOSSES = {"loss": "loss", "eval_loss": "validation loss", "train_loss": "mean loss"}
DVCLIVE = "dvclive"
StopRule = Callable[[TrainerState], bool]  # whether training ends, from the state at the end of an epoch


class BatchingTrainer(Trainer):
    """Batches examples of similar length, but evaluates groups in order, since they are identified by position."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler[int] | None:
        sampler = _with_lengths_in_memory(super()._get_train_sampler(*args, **kwargs))
        assert isinstance(sampler, LengthGroupedSampler)
        # Examples per step and process, so that a step has as many as with one process.
        sampler.batch_size *= self.args.world_size
        return OneOrder(sampler)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler[int] | None:
        if tokens.groups_of(self.eval_dataset) is not None:
            return SequentialSampler(eval_dataset)
        return _with_lengths_in_memory(super()._get_eval_sampler(eval_dataset))


def _with_lengths_in_memory(sampler: Sampler[int] | None) -> Sampler[int] | None:
    """Turn the lengths of a sampler into a list: reading a single length from a table takes as long as a row."""
    if isinstance(sampler, LengthGroupedSampler):
        sampler.lengths = sampler.lengths[:]
    return sampler


class OneOrder(Sampler[int]):
    """A sampler whose order the first process draws for all processes, which divide it among themselves.

    A sampler draws from the global generator of its process, and so does dropout, on different texts: after the first
    epoch, the processes' own orders would differ, so that some rows would come twice and others never. A checkpoint has
    the state of each generator, so a resumed run draws the same orders.
    """

    def __init__(self, sampler: LengthGroupedSampler) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        drawn = torch.tensor(list(self.sampler), device=PartialState().device)
        order: list[int] = broadcast(drawn, from_process=0).tolist()
        return iter(order)


def steps_an_epoch(view: TrainView, train: Dataset) -> int:
    """Return the number of optimizer steps per epoch of the train split."""
    return math.ceil(len(train) / view.train.batch_size)


def choose_extended_epochs(view: TrainView, train: Dataset) -> int:
    """Return the minimum number of epochs of `train.extend_epochs: auto` for a train split."""
    return enough_epochs(MIN_STEPS, steps_an_epoch(view, train))


def choose_epochs(view: TrainView, train: Dataset) -> int:
    """Return the number of epochs that `train.epochs` is or, if it is `auto`, chooses for a train split of tenants."""
    if view.train.epochs != "auto":
        return view.train.epochs
    epochs = enough_epochs(TENANT_STEPS, steps_an_epoch(view, train))
    return max(TENANT_EPOCHS, epochs)


def check_epochs(view: TrainView, train: Dataset) -> None:
    """Check that epochs and patience have an effect, given the train split.

    Raises:
        UserError: if one has none; one line each.
    """
    if view.train.extend_epochs != "auto":
        return
    idle = effects.idle_in_epochs(view.train, choose_extended_epochs(view, train))
    lines = [f"{PARAMS}: {value.line}" for value in idle]
    if lines:
        raise UserError("\n".join(lines))


def with_enough_steps(view: TrainView, train: Dataset) -> TrainView:
    """Return a view with the number of epochs that `epochs` and `extend_epochs` choose for a train split."""
    epochs = choose_epochs(view, train)
    if view.train.extend_epochs == "auto":
        epochs = max(epochs, choose_extended_epochs(view, train))
    return view.model_copy(update={"train": view.train.with_epochs(epochs)})


def check_class_weights(view: TrainView) -> None:
    """Check that the task has classes if class weights are balanced.

    Raises:
        UserError: if it has no classes.
    """
    if view.train.class_weights == "balanced" and not tasks.of(view.dataset).head.can_balance:
        needed = "balanced needs a label of classes, and no tenants"
        raise UserError(f"{PARAMS}: train.class_weights: {needed}")


def weigh_classes(view: TrainView, task: Task, model: PreTrainedModel, train: Dataset) -> None:
    """Set the loss of a base model to the class weights of a view, computed from the train split."""
    check_class_weights(view)
    if view.train.class_weights == "balanced":
        labels = np.array(train["label"][:])
        base_models.use_loss(model, task, task.head.build_balanced_loss(labels))


def trainer_of(
    view: TrainView,
    task: Task,
    model: PeftModel,
    splits: Mapping[str, Dataset],
    collate: DataCollatorWithPadding,
    folder: Path,
    watching: Sequence[TrainerCallback] = (),
    **changes: Any,
) -> Trainer:
    """Build a Trainer that fits a model to the split `train` and evaluates on `validation`, if there is one.

    `folder` is for checkpoints; `changes` override fields of its TrainingArguments.
    """
    chosen = training_arguments(view, task, steps_an_epoch(view, splits["train"]), folder)

    def scores(prediction: EvalPrediction) -> Scores:
        validation = splits["validation"]
        outputs = torch.from_numpy(np.asarray(prediction.predictions))
        outcome = Outcome(outputs, np.asarray(prediction.label_ids), tokens.groups_of(validation))
        scored = task.tune_thresholds(outcome).scoring.scores(outcome)
        if task.entry.select:
            prompts = Prompts(tokenizer_of(model, view.base_model), task.entry.template)
            size = chosen.per_device_eval_batch_size
            scored |= evaluation.exact_match(model, prompts, validation, task.entry.select_prompts, size)
        return {"score": scored[choose_selection_metric(task.scoring)], **scored}

    trainer = BatchingTrainer(
        model=model,
        args=dataclasses.replace(chosen, **changes),
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        data_collator=collate,
        compute_metrics=scores,
        preprocess_logits_for_metrics=task.head.evaluate_batch,
        optimizers=(adapters.optimizer(model, view), None),
        callbacks=list(watching),
    )
    # The loss of a classifier is a mean over rows. Taken for a sum, it is multiplied by the number of processes.
    # That of a language model is a mean over tokens, of which processes have different numbers: it counts them.
    if not task.head.generates or processes.shares() == 1:
        trainer.model_accepts_loss_kwargs = False
    trainer.remove_callback(PrinterCallback)
    return trainer


def fit(trainer: Trainer, folder: Path, is_over: StopRule) -> None:
    """Fit the model, resuming from the last complete checkpoint in the run's folder.

    Training ends after the first epoch at whose end `is_over` is true of the Trainer's state.
    """
    newest = checkpoints.newest(folder)
    trainer.add_callback(checkpoints.Keep(folder))
    trainer.add_callback(StopWhen(is_over))
    state = None if newest is None else checkpoints.state_of(newest)
    if state is not None and is_over(state):
        trainer.args.num_train_epochs = round(state.epoch)  # it had stopped here when it was killed
    trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    PartialState().wait_for_everyone()  # all have read the best checkpoint, so it may be removed


def training_arguments(view: TrainView, task: Task, steps_an_epoch: int, folder: Path) -> TrainingArguments:
    """Translate our train section into the Trainer's arguments."""
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=view.train.epoch_count,
        per_device_train_batch_size=max(1, view.train.batch_size // processes.shares()),
        per_device_eval_batch_size=(4 if task.head.fields() else 1) * view.train.batch_size,
        warmup_steps=round(view.train.warmup_ratio * view.train.epoch_count * steps_an_epoch),
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="score",
        use_cpu=fastest().type == "cpu",  # otherwise bf16 is rejected without a GPU
        bf16=view.train.precision == "bf16",
        fp16=view.train.precision == "fp16",
        torch_compile=view.train.compile,
        logging_steps=steps_a_log(view.train.epoch_count, steps_an_epoch),
        logging_nan_inf_filter=False,  # the filter waits for the loss of every step, and hides NaN and inf
        seed=view.seed,
        data_seed=view.seed,
        report_to=[tracker for tracker in view.train.report_to if tracker != DVCLIVE],
        run_name=name_of(view),
        log_level_replica="passive",  # that of the first process, or a second model would be loaded with a report
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=isinstance(view.section, FullParams),  # adapters and heads have no unused parameters
    )


def steps_a_log(epochs: int, steps_an_epoch: int) -> int:
    """Return the number of steps over which a logged loss is averaged, for about LOGS_A_RUN points.

    It divides the steps of an epoch, because a run that resumes at an epoch's checkpoint begins a new mean.
    """
    wanted = max(1, min(epochs, LOGS_A_RUN) * steps_an_epoch // LOGS_A_RUN)
    return next(steps for steps in range(wanted, steps_an_epoch + 1) if steps_an_epoch % steps == 0)


class DivergedError(UserError):
    """A training run whose loss is infinite or NaN."""


class Progress(TrainerCallback):
    """Advances a progress bar at each optimizer step, and shows in it the mean loss since the last log.

    The learning rate shown is the first group's: the adapter's, if any.
    """

    def __init__(self, advance: Advance) -> None:
        self.advance = advance

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self.advance(state.global_step)  # those that a resumed run has already done

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self.advance(1)

    def on_log(self, args: Any, state: TrainerState, control: Any, **given: Any) -> None:
        logs = given["logs"]
        if "loss" in logs:
            self.advance(0, f"loss {logs['loss']:.3g}, lr {logs['learning_rate']:.3g}")


class StopAtDivergence(TrainerCallback):
    """Stops a run when a loss is infinite or NaN: it could not recover.

    The loss is a logged one, that of the validation split, or at the end the mean over all steps.
    """

    def on_log(self, args: Any, state: TrainerState, control: Any, **given: Any) -> None:
        for key, name in LOSSES.items():
            loss = given["logs"].get(key, 0.0)
            if not math.isfinite(loss):
                raise DivergedError(
                    f"train: the {name} is {loss} after {state.global_step} steps: lower the learning rate"
                )


class StopWhen(TrainerCallback):
    """Stops a run after the first epoch at whose end a rule holds.

    transformers' EarlyStoppingCallback loses its count when a run resumes; here the Trainer's state determines it.
    """

    def __init__(self, is_over: StopRule) -> None:
        self.is_over = is_over

    def on_save(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        control.should_training_stop |= self.is_over(state)


def scores_of(state: TrainerState) -> list[float]:
    """Return the validation scores in a Trainer's state, by epoch."""
    return [entry["eval_score"] for entry in state.log_history if "eval_score" in entry]


def is_out_of_patience(patience: int | Literal["none"], state: TrainerState) -> bool:
    """Return whether at least `patience` epochs came after the one with the best score."""
    return patience != "none" and lacks_gain(scores_of(state), patience)


def lacks_gain(scores: Sequence[float], patience: int) -> bool:
    """Return whether at least `patience` epochs came after the first with the best score (scores by epoch)."""
    return len(scores) - 1 - scores.index(max(scores)) >= patience


def trackers(view: TrainView) -> list[TrainerCallback]:
    """Let the trackers of train.report_to write into runs/ and send nothing, unless the environment says otherwise.

    The callback for DVCLive is returned: transformers' own would write a dvc.yaml and save an experiment.
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
