"""The one place that builds a Trainer, for the stage train, the arena and the benchmarks."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from filelock import FileLock
from peft import PeftModel
from ruamel.yaml import YAML
from torch.utils.data import Sampler, SequentialSampler
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler

from pipeline import evaluation, tasks
from pipeline.core import artifacts, console
from pipeline.data import base_models, content, tokens
from pipeline.params import TrainView
from pipeline.params.sections import LEAST_STEPS, MOST_EPOCHS
from pipeline.tasks import CompletionTask
from pipeline.training import arguments, callbacks, checkpoints

CODE = Path(__file__).parents[2]  # the folder of dvc.yaml


class BatchingTrainer(Trainer):
    """Batches examples of similar length, or with `keeps_order` evaluates in their order.

    Groups that are scored together are known by their positions.
    """

    keeps_order = False

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler[int] | None:
        return _with_lengths_in_memory(super()._get_train_sampler(*args, **kwargs))

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler[int] | None:
        if self.keeps_order:
            return SequentialSampler(eval_dataset)
        return _with_lengths_in_memory(super()._get_eval_sampler(eval_dataset))


def _with_lengths_in_memory(sampler: Sampler[int] | None) -> Sampler[int] | None:
    """Turn the lengths of a sampler into a list: reading a single one from a table takes as long as reading a row."""
    if isinstance(sampler, LengthGroupedSampler):
        sampler.lengths = sampler.lengths[:]
    return sampler


def steps_an_epoch(view: TrainView, train: Dataset) -> int:
    """Return the number of optimizer steps per epoch of the train split."""
    return math.ceil(len(train) / view.train.batch_size)


def with_enough_steps(view: TrainView, train: Dataset) -> TrainView:
    """Return a view with as many epochs as `train.steps` says for a train split."""
    if view.train.steps == "epochs":
        return view
    each = steps_an_epoch(view, train)
    epochs = max(view.train.epochs, min(MOST_EPOCHS, math.ceil(LEAST_STEPS / each)))
    console.line(f"train: {epochs} epochs of {each} steps, {epochs * each:,}, by train.steps: auto")
    return view.model_copy(update={"train": view.train.model_copy(update={"epochs": epochs})})


def trainer_of(
    view: TrainView,
    model: PeftModel,
    splits: Mapping[str, Dataset],
    collate: DataCollatorWithPadding,
    folder: Path,
    watching: Sequence[TrainerCallback] = (),
    **changes: Any,
) -> Trainer:
    """Return a Trainer that fits a model to the split `train`, evaluating on `validation` if there is one.

    `folder` is for checkpoints; `changes` override fields of its TrainingArguments.
    """
    groups = tokens.groups_of(splits["validation"]) if "validation" in splits else None
    chosen = arguments.training_arguments(view, steps_an_epoch(view, splits["train"]), folder)
    task, more = tasks.of(view.dataset), partial(dict[str, float])
    if isinstance(task, CompletionTask) and task.row.select and "validation" in splits:
        prompts, size = task.prompts(base_models.load_tokenizer(view.base_model)), chosen.per_device_eval_batch_size
        more = partial(evaluation.exact_match, model, prompts, splits["validation"], task.row.select_prompts, size)
    trainer = BatchingTrainer(
        model=model,
        args=dataclasses.replace(chosen, **changes),
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        data_collator=collate,
        compute_metrics=partial(arguments.scores, task, groups, more),
        preprocess_logits_for_metrics=task.measured if isinstance(task, CompletionTask) else None,
        optimizers=(arguments.optimizer(model, view), None),
        callbacks=[callbacks.LaterOfEquals(), *watching],
    )
    trainer.keeps_order = groups is not None
    # The loss of a classifier is a mean over rows. Taken for a sum, it is multiplied by the number of processes.
    trainer.model_accepts_loss_kwargs = False
    trainer.remove_callback(PrinterCallback)
    return trainer


def fit(trainer: Trainer, folder: Path, patience: int | None = None) -> None:
    """Fit the model, resuming from the last complete checkpoint in the run's folder; the Trainer writes aside there.

    It ends after so many epochs of `patience` without a better validation score.
    """
    newest = checkpoints.newest(folder)
    trainer.add_callback(callbacks.KeepComplete(folder))
    if patience is not None:
        trainer.add_callback(callbacks.StopWithoutGain(patience))
        if newest is not None and callbacks.lacks_gain(state := checkpoints.state_of(newest), patience):
            trainer.args.num_train_epochs = round(state.epoch)  # it had stopped here when it was killed
    trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    PartialState().wait_for_everyone()  # all have read the best checkpoint, so it may be removed


@contextmanager
def run_folder(view: TrainView) -> Iterator[Path]:
    """Yield the folder for the checkpoints of a run, which is removed when the run succeeds.

    Another run with the same inputs, such as an experiment in a temporary copy, waits until then. Of the processes of
    one run, the first one holds the folder for all.
    """
    folder = checkpoint_folder(view)
    if not console.IS_FIRST:
        yield folder
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        artifacts.remove(folder / callbacks.ASIDE)
        with artifacts.name_path_on_error(folder):
            yield folder
        artifacts.remove(folder)


def checkpoint_folder(view: TrainView) -> Path:
    """Return a folder named by a hash of all that determines the result: only a run with the same inputs resumes there.

    Trackers do not determine it: `train.report_to` is excluded from dumps of the view.

    DVC deletes the outs of a stage before running it, and runs experiments in temporary copies. So the folder is not an
    out, and lies in the original repository.
    """
    known = [view.model_dump(mode="json"), {name: content.sha256(path) for name, path in inputs()}]
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    return artifacts.repository() / ".checkpoints" / digest.hexdigest()[:16]


def inputs() -> Iterator[tuple[str, Path]]:
    """Yield the files that training depends on in addition to its view, the deps of the stage, with their names."""
    deps = YAML(typ="safe", pure=True).load(CODE / "dvc.yaml")["stages"]["train"]["deps"]
    ignored = {CODE / line[1:] for line in (CODE / ".dvcignore").read_text().splitlines() if line.startswith("/")}
    for dep in map(Path, deps):
        root = Path() if dep.parts[0] == artifacts.INIT.parts[0] else CODE
        for path in (root / dep, *(root / dep).rglob("*")):
            if path.is_file() and path.suffix != ".pyc" and ignored.isdisjoint((path, *path.parents)):
                yield path.relative_to(root).as_posix(), path
