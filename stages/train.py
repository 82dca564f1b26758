"""Fit the adapter and the head; everything else stays frozen.

Reads artifacts/tokens and artifacts/init. Writes artifacts/adapter/ (the best epoch's PEFT adapter, and
task.json: what it reads and says) and reports/train/.
"""

import math
import shutil
from pathlib import Path

from peft import PeftModel
from transformers import PrinterCallback, Trainer, set_seed
from transformers.trainer_utils import get_last_checkpoint

from pipeline import artifacts, console, params, stage
from pipeline.data import tokens
from pipeline.methods import adapters, base_models
from pipeline.methods.task import Task
from pipeline.training import arguments
from pipeline.training.trainer import MergingTrainer

# What a checkpoint depends on beside the view: the stage's own deps.
INPUTS = [Path("stages/train.py"), Path("pipeline"), Path("lsr"), artifacts.TOKENS, artifacts.INIT]


def train(trainer: Trainer, steps: int, checkpoints: Path) -> None:
    """Fit the model with a progress bar, from the last checkpoint if a run with the same inputs was cut off."""
    with console.progress("train", steps, "steps") as advance:
        trainer.add_callback(arguments.Progress(advance))
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None)


def main(view: params.TrainView) -> None:
    arguments.check_machine(view.train)
    set_seed(view.seed)
    base = base_models.load_base_model(view.base_model, view.dataset)
    model = adapters.load_adapter(base, artifacts.INIT, trainable=True)
    split = {name: tokens.load_tokens(name) for name in ("train", "validation")}
    steps_an_epoch = math.ceil(len(split["train"]) / view.train.batch_size)
    checkpoints = arguments.checkpoint_folder(view, INPUTS)
    trainer = MergingTrainer(
        model=model,
        args=arguments.training_arguments(view, steps_an_epoch, checkpoints),
        train_dataset=split["train"],
        eval_dataset=split["validation"],
        data_collator=tokens.collator(base_models.load_tokenizer(view.base_model)),
        compute_metrics=arguments.scorer(view.dataset),
        optimizers=(arguments.optimizer(model, view), None),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(arguments.StopAtDivergence())
    train(trainer, view.train.epochs * steps_an_epoch, checkpoints)
    with artifacts.replacing(artifacts.ADAPTER) as folder:
        folder.mkdir()
        adapters.save_adapter(model, folder, view.base_model)
        Task.of(view.dataset, view.tokenize.max_length).write(folder)
    write_reports(trainer, model, view)
    shutil.rmtree(checkpoints)


def write_reports(trainer: Trainer, model: PeftModel, view: params.TrainView) -> None:
    """Write metrics and curves, and print the closing table."""
    curves = arguments.curves(trainer.state.log_history)
    with artifacts.replacing(artifacts.TRAIN_CURVES) as folder:
        for name, points in curves.items():
            artifacts.write_csv(folder / f"{name}.csv", ["step", name], points)
    validation = [score for _, score in curves["validation_score"]]
    metrics = {
        "best_epoch": 1 + validation.index(max(validation)),
        "best_score": max(validation),
        "last_score": validation[-1],
        "last_loss": curves["loss"][-1][1],
        "steps": trainer.state.global_step,
        **adapters.count_parameters(model, view.base_model),
    }
    artifacts.write_metrics(artifacts.TRAIN_METRICS, metrics)
    losses = dict(curves["validation_loss"])
    rows = [(epoch, score, losses[step]) for epoch, (step, score) in enumerate(curves["validation_score"], start=1)]
    console.table("train", ["epoch", f"validation {view.dataset.metrics[0]}", "loss"], rows)


if __name__ == "__main__":
    stage.run(main, params.TrainView)
