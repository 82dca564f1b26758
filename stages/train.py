"""Fit the adapter and the head; everything else stays frozen.

Reads artifacts/tokens and artifacts/init. Writes artifacts/adapter/ (the best epoch's PEFT adapter, and
task.json: what it reads and says) and reports/train/.
"""

import shutil

from peft import PeftModel
from transformers import Trainer, set_seed

from pipeline import artifacts, console, params, stage
from pipeline.data import tokens
from pipeline.methods import adapters, base_models
from pipeline.methods.task import Task
from pipeline.training import arguments, run
from pipeline.training.callbacks import Progress, StopAtDivergence


def main(view: params.TrainView) -> None:
    arguments.check_machine(view.train)
    set_seed(view.seed)
    base = base_models.load_base_model(view.base_model, view.dataset)
    model = adapters.load_adapter(base, artifacts.INIT, trainable=True)
    splits = {name: tokens.load_tokens(name) for name in ("train", "validation")}
    collate = tokens.collator(base_models.load_tokenizer(view.base_model))
    checkpoints = run.checkpoint_folder(view)
    steps = view.train.epochs * run.steps_an_epoch(view, splits["train"])
    with console.progress("train", steps, "steps") as advance:
        trainer = run.trainer_of(view, model, splits, collate, checkpoints, [StopAtDivergence(), Progress(advance)])
        run.fit(trainer)
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
    scores, losses = dict(curves["validation_score"]), dict(curves["validation_loss"])
    best = next(step for step in scores if step == trainer.state.best_global_step)
    metrics = {
        "best_epoch": 1 + list(scores).index(best),
        "best_score": scores[best],
        "last_score": list(scores.values())[-1],
        "last_loss": curves["loss"][-1][1],
        "steps": trainer.state.global_step,
        **adapters.count_parameters(model, view.base_model),
    }
    artifacts.write_metrics(artifacts.TRAIN_METRICS, metrics)
    rows = [(epoch, score, losses[step]) for epoch, (step, score) in enumerate(scores.items(), start=1)]
    console.table("train", ["epoch", f"validation {view.dataset.metrics[0]}", "loss"], rows)


if __name__ == "__main__":
    stage.run(main, params.TrainView)
