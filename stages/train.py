"""Train the adapter and the head; everything else stays frozen.

Reads artifacts/tokens and artifacts/init. Writes artifacts/adapter/ (the PEFT adapter of the best epoch or, with
`train.refit`, of a second training run; task.json, its inputs and labels; README.md, its card), artifacts/bank/ (what
is served, if there are tenants) and reports/train/. With `train.processes` above 1, it starts itself that many times
through torchrun, and the first process writes.
Not a DVC out: runs/, where trackers write.
"""

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import set_seed

from lsr.serve.bank import AdapterBank
from lsr.serve.shared_adapter import last_layer
from lsr.tuner.files import read_files
from lsr_onnx.errors import some_of
from pipeline import params, stage
from pipeline.core import artifacts, console
from pipeline.data import base_models, tokens
from pipeline.methods import adapters, banks, cards, heads
from pipeline.methods.adapter_task import AdapterTask
from pipeline.methods.batches import tokenizer_of
from pipeline.methods.device import advise_on_threads
from pipeline.methods.heads import GroupHead
from pipeline.params.sections import RegressionParams
from pipeline.tasks import Task
from pipeline.tasks.groups import find_similar
from pipeline.tasks.scoring import Scoring, name_selection_score
from pipeline.training import calibration, checkpoints, head_regression, processes, run
from pipeline.training.fit import REFIT, Fitted, count_tenants, fit, join, refit
from pipeline.training.history import History

CURVES = {  # names of curves by key in the Trainer's log
    "loss": artifacts.TRAIN_LOSS,
    "eval_loss": artifacts.TRAIN_VALIDATION_LOSS,
    "eval_score": artifacts.TRAIN_VALIDATION_SCORE,
}
NO_BANK = "There is no bank: the data has no column of tenants. What was trained is in artifacts/adapter.\n"
Curve = list[tuple[int, float]]  # optimizer steps and values
MAX_GROUPS = 3  # groups of tenants on the terminal
MAX_LABELS = 3  # labels of each
SHOWN = ("best_epoch", "best_score", "read", "steps")  # metrics in DVC's tables


def main(view: params.TrainView) -> None:
    processes.check_machine(view.train)
    if processes.start("stages.train", view.train.processes):
        return
    advise_on_threads(console.warn)
    with checkpoints.run_folder(view) as folder:
        train(view, folder)


def train(view: params.TrainView, folder: Path) -> None:  # resumes from the last checkpoint in the folder, if any
    set_seed(view.seed)
    task = tokens.load_task(view.dataset)
    splits = {name: tokens.load_tokens(name) for name in ("train", "validation")}
    run.check_epochs(view, splits["train"])
    model = load_initialized(view, task, splits["train"])
    tokenizer = tokenizer_of(model.get_base_model(), view.base_model)
    collate = task.head.collator(tokenizer)
    view = run.with_enough_steps(view, splits["train"])
    if isinstance(view.section, RegressionParams):
        layer = heads.last_layer_of(model, last_layer(read_files(artifacts.INIT)))
        history = head_regression.fit_head(view, task, model, layer, splits, collate)
        fitted = Fitted(history, [])
    else:
        print_similar(view, task)
        fitted = fit(view, task, model, splits, collate, folder)
    if console.IS_FIRST:
        task = calibration.calibrate(task, model, splits["validation"], collate, view.train.batch_size)
    if view.train.refit:
        del model
        gc.collect()  # a trained model is in reference cycles, and memory should hold one base model
        model, fitted = refit_with_validation(view, task, splits, folder / REFIT, fitted)
    if not console.IS_FIRST:
        return
    print_groups(fitted.group_heads)
    write_adapter(view, task, model, tokenizer, fitted.history.best_score)
    write_bank(view, task, fitted.group_heads)
    write_reports(view, task, fitted.history)


def load_initialized(view: params.TrainView, task: Task, train: Dataset) -> PeftModel:
    """Return the model with its initialized adapter, and the loss of the task and its classes."""
    base = base_models.load_base_model(view.base_model, task)
    model = adapters.load_adapter(base, artifacts.INIT, trainable=True)
    if view.tenants.folder:
        banks.freeze_shared_adapter(model, last_layer(read_files(artifacts.INIT)))
    run.weigh_classes(view, task, base, train)
    return model


def refit_with_validation(
    view: params.TrainView,
    task: Task,
    splits: Mapping[str, Dataset],
    folder: Path,
    fitted: Fitted,
) -> tuple[PeftModel, Fitted]:
    """Return the model that is trained again on train and validation, with the temperatures that validation had."""
    examples = join(splits)
    choice = fitted.choice
    steps = choice.epochs * run.steps_an_epoch(view, examples)
    set_seed(view.seed)
    counted = count_tenants(task, examples)
    model = load_initialized(view, counted, examples)
    collate = task.head.collator(tokenizer_of(model.get_base_model(), view.base_model))
    with console.progress("train, on train and validation", steps, "steps") as advance:
        watching = [run.StopAtDivergence(), run.Progress(advance)]
        trainer, group_heads = refit(view, counted, model, examples, collate, folder, choice, watching)
    if task.facts.temperatures is not None:
        calibration.apply_temperatures(task.facts, model)
    count = f"{len(examples):,} examples"
    console.line(f"train: trained again on train and validation, {count}, for {choice.epochs} epochs")
    return model, Fitted(fitted.history.add_run(trainer), group_heads)


def print_similar(view: params.TrainView, task: Task) -> None:
    """Print which tenants would share rows of their heads if their labels had the same case."""
    if view.tenants.head == "own":
        return
    tenants = task.facts.tenants
    for first, other in find_similar(task.facts)[:MAX_GROUPS]:
        labels = some_of(tenants[first].labels or (), MAX_LABELS)
        others = some_of(tenants[other].labels or (), MAX_LABELS)
        reason = f"{labels} and {others} differ in case alone"
        console.line(f"train: {first} and {other} share no rows of their heads, because their labels {reason}")


def print_groups(group_heads: Sequence[GroupHead]) -> None:
    """Print which tenants share rows of their heads, and how far they deviate from them."""
    for head in group_heads[:MAX_GROUPS]:
        labels = some_of(head.group.labels or ["a number"], MAX_LABELS)
        kept = f"and keep {head.kept:.0%} of their deviations" if head.kept else "without deviations"
        console.line(f"train: {len(head.group.tenants):,} tenants with {labels} share rows of their heads, {kept}")
    more = len(group_heads) - MAX_GROUPS
    if more > 0:
        console.line(f"train: {more:,} more groups of tenants share rows of their heads")


def write_adapter(view: params.TrainView, task: Task, model: PeftModel, tokenizer: Any, score: float) -> None:
    """Write the adapter with its head, its task info and its card; `score` is that of the validation split."""
    counts = adapters.count_parameters(model, view.base_model)
    with artifacts.replace_atomically(artifacts.ADAPTER) as folder:
        folder.mkdir()
        adapters.save_adapter(model, folder, view.base_model)
        task_info = AdapterTask.of(task, view.tokenize.max_length, tokenizer)
        task_info.write(folder)
        card = cards.of_training(view, task, counts, score, folder)
        card.write(folder)


def write_bank(view: params.TrainView, task: Task, group_heads: Sequence[GroupHead]) -> None:
    """Write the bank of the tenants and their groups or, without tenants, a folder with an explanatory line.

    DVC warns of an output that is an empty folder.
    """
    with artifacts.replace_atomically(artifacts.BANK) as folder:
        if not task.facts.tenants:
            folder.mkdir()
            (folder / "README.md").write_text(NO_BANK, encoding="utf-8")
            return
        base = banks.base_of(view.base_model)
        bank = AdapterBank.of_tenants(artifacts.ADAPTER, base, precision=view.tenants.precision)
        bank.add_groups(banks.make_group_entries(bank, list(task.facts.tenants), group_heads))
        bank.save(folder)


def write_reports(view: params.TrainView, task: Task, history: History) -> None:
    """Write metrics and curves, and print a summary table."""
    curves = dict[str, Curve]()
    for key, path in CURVES.items():
        logged = [entry for entry in history.log if key in entry]
        points = Curve()
        for entry in logged:
            point = (int(entry["step"]), float(entry[key]))
            points.append(point)
        curves[path.stem] = points
        artifacts.write_csv(path, ["step", path.stem], points)
    _, last_loss = curves["loss"][-1]
    _, last_score = curves["validation_score"][-1]
    metrics = {
        "best_epoch": history.best_epoch,
        "best_score": history.best_score,
        "last_score": last_score,
        "last_loss": last_loss,
        "steps": history.steps,
        "read": history.read,
    }
    artifacts.write_metrics(artifacts.TRAIN_METRICS, metrics, SHOWN)
    print_curves(curves, task.scoring)
    epochs = len(curves["validation_score"])
    if history.steps and epochs < view.train.epoch_count:
        done = f"{epochs} of {view.train.epoch_count} epochs"
        console.line(f"train: stopped after {done}, by train.patience: {view.train.patience}")


def print_curves(curves: Mapping[str, Curve], scoring: Scoring) -> None:
    """Print the score (by name) and the loss per epoch, and all curves.

    A score that is the negative of a loss is printed as that loss alone.
    """
    losses = dict(curves["validation_loss"])
    rows = list[tuple[float, ...]]()
    for epoch, (step, score) in enumerate(curves["validation_score"], start=1):
        metric, shown = name_selection_score(scoring, score)
        rows.append((epoch, shown, losses[step]))
    columns = ["epoch", f"validation {metric}", "loss"]
    printed = dict(curves)
    if metric == "loss":
        columns.pop()
        rows = [row[:-1] for row in rows]
        del printed["validation_score"]
    console.table("train", columns, rows)
    for name, points in printed.items():
        values = [value for _, value in points]
        first = values[0]
        last = values[-1]
        heading = name.replace("_", " ")
        line = console.sparkline(values)
        console.line(f"{heading:16} {line} {first:.4g} to {last:.4g}")


if __name__ == "__main__":
    stage.run(
        main,
        params.TrainView,
        "Train the adapter and its head; an interrupted run resumes from its last complete epoch. Writes "
        "artifacts/adapter/, with tenants also artifacts/bank/, and reports/train/.",
    )
