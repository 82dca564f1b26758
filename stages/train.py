"""Train the adapter and the head; everything else stays frozen.

Reads artifacts/tokens and artifacts/init. Writes artifacts/adapter/ (the PEFT adapter of the best epoch; task.json, its
inputs and labels; README.md, its card) and reports/train/. With `train.processes` above 1, it starts itself that many
times through torchrun, and the first process writes.
Not a DVC out: runs/, where trackers write.
"""

from pathlib import Path
from typing import cast

from datasets import Dataset
from transformers import Trainer, set_seed

from pipeline import params, stage, tasks
from pipeline.core import artifacts, console
from pipeline.data import base_models, tokens
from pipeline.methods import adapters, cards
from pipeline.methods.adapter_task import AdapterTask
from pipeline.training import arguments, callbacks, processes, run


def main(view: params.TrainView) -> None:
    arguments.check_machine(view.train)
    if processes.start("stages.train", view.train.processes):
        return
    with run.run_folder(view) as folder:
        train(view, folder)


def train(view: params.TrainView, folder: Path) -> None:
    """Train the adapter, resuming from the last checkpoint in a folder if there is one; write it and the reports."""
    set_seed(view.seed)
    base = base_models.load_base_model(view.base_model, view.dataset)
    model = adapters.load_adapter(base, artifacts.INIT, trainable=True)
    splits = {name: tokens.load_tokens(name) for name in ("train", "validation")}
    collate = tasks.of(view.dataset).collator(base_models.load_tokenizer(view.base_model))
    steps = view.train.epochs * run.steps_an_epoch(view, splits["train"])
    with console.progress("train", steps, "steps") as advance:
        watching = [callbacks.StopAtDivergence(), callbacks.Progress(advance), *arguments.trackers(view)]
        trainer = run.trainer_of(view, model, splits, collate, folder / callbacks.ASIDE, watching)
        run.fit(trainer, folder)
    if not console.IS_FIRST:
        return
    counts = adapters.count_parameters(model, view.base_model)
    with artifacts.replacing(artifacts.ADAPTER) as written:
        written.mkdir()
        adapters.save_adapter(model, written, view.base_model)
        AdapterTask.of(tasks.of(view.dataset), view.tokenize.max_length).write(written)
        cards.of_training(view, counts, cast("float", trainer.state.best_metric), written).write(written)
    write_reports(trainer, view)


def write_reports(trainer: Trainer, view: params.TrainView) -> None:
    """Write metrics and curves, and print a summary table."""
    names = {"loss": "loss", "eval_loss": "validation_loss", "eval_score": "validation_score"}
    curves = {
        name: [(int(entry["step"]), float(entry[key])) for entry in trainer.state.log_history if key in entry]
        for key, name in names.items()
    }
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
        "read": view.train.epochs * len(cast("Dataset", trainer.train_dataset)),
    }
    artifacts.write_metrics(artifacts.TRAIN_METRICS, metrics)
    rows = [(epoch, score, losses[step]) for epoch, (step, score) in enumerate(scores.items(), start=1)]
    console.table("train", ["epoch", f"validation {view.dataset.metrics[0]}", "loss"], rows)


if __name__ == "__main__":
    stage.run(main, params.TrainView)
