"""Fit a model to the training split up to the best epoch, and with `train.refit` again to train and validation."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset, concatenate_datasets
from peft import PeftModel
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainerState

from pipeline.core import console
from pipeline.methods.heads import GroupHead
from pipeline.params import TrainView
from pipeline.tasks import Task
from pipeline.tasks.task import TENANT
from pipeline.training import processes, run, shared_head
from pipeline.training.history import History

REFIT = "refit"  # the folder for checkpoints of the second training run, in that of the first


class Fitted(NamedTuple):
    """What fitting a model has found; the model itself has changed."""

    history: History
    group_heads: Sequence[GroupHead]  # the rows that groups of tenants share

    @property
    def choice(self) -> "Choice":
        """What the validation split has chosen."""
        return Choice(self.history.best_epoch, self.group_heads)


class Choice(NamedTuple):
    """What the validation split has chosen in a training run."""

    epochs: int
    group_heads: Sequence[GroupHead]  # their shares of the tenants' deviations and their temperatures


def fit(
    view: TrainView,
    task: Task,
    model: PeftModel,
    splits: Mapping[str, Dataset],
    collate: DataCollatorWithPadding,
    folder: Path,
) -> Fitted:
    """Fit the model, in which tenants may share rows of the head; it has the weights of the best checkpoint."""
    steps = view.train.epoch_count * run.steps_an_epoch(view, splits["train"])
    _print_length(view, task, steps)
    with shared_head.prepare_head(task, model, view.tenants.head) as shared:
        with console.progress("train", steps, "steps") as advance:
            watching = [run.StopAtDivergence(), run.Progress(advance), *run.trackers(view)]
            trainer = run.trainer_of(view, task, model, splits, collate, folder, watching)
            processes.check_same(folder.name)
            run.fit(trainer, folder, partial(run.is_out_of_patience, view.train.patience))
        history = History.of(trainer)
        if shared is None or not console.IS_FIRST:
            return Fitted(history, [])
        group_heads = shared_head.choose_shares(
            task, model, shared, splits["validation"], collate, view.train.batch_size
        )
        shared.add_deviations()
    return Fitted(history, group_heads)


def _print_length(view: TrainView, task: Task, steps: int) -> None:
    """Print the number of epochs and optimizer steps, where the data determine it."""
    epochs = view.train.epoch_count
    length = f"train: {epochs} epochs of {steps // epochs} steps, {steps:,}"
    if view.train.extend_epochs == "auto":
        console.line(f"{length}, by train.extend_epochs: auto")
    elif task.facts.tenants:
        console.line(f"{length}; train.epochs sets their number")


def join(splits: Mapping[str, Dataset]) -> Dataset:
    """Return the examples of train and validation together, with the columns of train."""
    train = splits["train"]
    validation = splits["validation"].select_columns(train.column_names)
    return concatenate_datasets([train, validation])


def count_tenants(task: Task, examples: Dataset) -> Task:
    """Return the task with the numbers of these examples per tenant, by which the loss of a model weighs them."""
    if not task.facts.tenants:
        return task
    return task.with_facts(task.facts.with_counts(examples[TENANT][:]))


def refit(
    view: TrainView,
    task: Task,
    model: PeftModel,
    examples: Dataset,
    collate: DataCollatorWithPadding,
    folder: Path,
    choice: Choice,
    watching: Sequence[TrainerCallback],
) -> tuple[Trainer, list[GroupHead]]:
    """Fit an initialized model to examples as an earlier training run chose; return the Trainer and the groups' rows.

    The task, and the loss of the model, have the examples' numbers of tenants, see `count_tenants`.
    The learning rates have the schedule of the earlier training run, which may have had more epochs.
    """
    with shared_head.prepare_head(task, model, view.tenants.head) as shared:
        trainer = run.trainer_of(
            view,
            task,
            model,
            {"train": examples},
            collate,
            folder,
            watching,
            eval_strategy="no",
            load_best_model_at_end=False,
            report_to=[],
        )
        run.fit(trainer, folder, partial(_has_epochs, choice.epochs))
        if shared is None or not console.IS_FIRST:
            return trainer, []
        group_heads = shared.keep_as_before(choice.group_heads)
        shared.add_deviations()
    return trainer, group_heads


def _has_epochs(epochs: int, state: TrainerState) -> bool:
    return round(state.epoch or 0) >= epochs
