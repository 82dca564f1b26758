"""The one place that builds a Trainer, for the train stage, the arena and the benchmarks."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from ruamel.yaml import YAML
from transformers import DataCollatorWithPadding, PrinterCallback, Trainer, TrainerCallback

from pipeline import ranks
from pipeline.core import artifacts
from pipeline.data import tokens
from pipeline.params import TrainView
from pipeline.training import arguments
from pipeline.training.callbacks import LaterOfEquals
from pipeline.training.checkpoints import Checkpoints, KeepWhole
from pipeline.training.shares import SharingTrainer
from pipeline.training.trainer import MergingTrainer

MEGABYTE = 2**20
CODE = Path(__file__).parents[2]  # the folder of dvc.yaml


def steps_an_epoch(view: TrainView, train: Dataset) -> int:
    """Return the number of optimizer steps per epoch of the train split."""
    return math.ceil(len(train) / view.train.batch_size)


def trainer_of(
    view: TrainView,
    model: PeftModel,
    splits: Mapping[str, Dataset],
    collate: DataCollatorWithPadding,
    folder: Path,
    callbacks: Sequence[TrainerCallback] = (),
    **changes: Any,
) -> Trainer:
    """Return a Trainer that fits a model to the split `train`, evaluating on `validation` if there is one.

    `folder` is for checkpoints; `changes` override fields of its TrainingArguments.
    """
    groups = tokens.groups_of(splits["validation"]) if "validation" in splits else None
    chosen = arguments.training_arguments(view, steps_an_epoch(view, splits["train"]), folder)
    kind = MergingTrainer if ranks.size() == 1 else SharingTrainer
    trainer = kind(
        model=model,
        args=dataclasses.replace(chosen, **changes),
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation"),
        data_collator=collate,
        compute_metrics=arguments.scorer(view.dataset, groups),
        keeps_order=groups is not None,
        optimizers=(arguments.optimizer(model, view), None),
        callbacks=[LaterOfEquals(), *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def fit(trainer: Trainer, checkpoints: Checkpoints) -> None:
    """Fit the model, resuming from the last intact checkpoint if there is one; the Trainer must write to `aside`.

    Raises:
        UserError: if the best checkpoint, which is loaded at the end, has changed since it was written.
    """
    newest = ranks.told(lambda: str(checkpoints.newest() or ""))
    trainer.add_callback(KeepWhole(checkpoints))
    trainer.train(resume_from_checkpoint=newest or None)
    if trainer.state.best_global_step is not None and ranks.is_first():
        checkpoints.check(trainer.state.best_global_step)
    ranks.wait()  # all have read the best one, so it may be removed


def checkpoint_folder(view: TrainView) -> Path:
    """Return a folder named by a hash of all that determines the result: only a run with the same inputs resumes there.

    Trackers do not determine it: `train.report_to` is excluded from dumps of the view.

    DVC deletes the outs of a stage before running it, and runs experiments in temporary copies. So the folder is not an
    out, and lies in the original repository.
    """
    digest = hashlib.sha256(json.dumps(view.model_dump(mode="json"), sort_keys=True).encode())
    for name, path in sorted(_inputs()):
        digest.update(name.encode())
        with path.open("rb") as file:
            while part := file.read(MEGABYTE):  # tokens may exceed the memory
                digest.update(part)
    return artifacts.repository() / ".checkpoints" / digest.hexdigest()[:16]


def _inputs() -> Iterator[tuple[str, Path]]:
    """Yield the files that training depends on in addition to its view, the deps of the stage, with their names."""
    deps = YAML(typ="safe", pure=True).load(CODE / "dvc.yaml")["stages"]["train"]["deps"]
    for dep in map(Path, deps):
        root = Path() if dep.parts[0] == artifacts.INIT.parts[0] else CODE
        for path in (root / dep, *(root / dep).rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                yield path.relative_to(root).as_posix(), path
