"""Run one training of the arena: initialize the adapter, train it, and score it after every epoch."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save
from transformers import Trainer, TrainerCallback, TrainerState, set_seed

from lsr.algebra.rounding import PRECISIONS, pack, unpack
from lsr.tuner.files import WEIGHTS
from pipeline import evaluation, tasks
from pipeline.arena import machine, statistics, task_tokens
from pipeline.arena.plan import Training
from pipeline.arena.record import Record, Rounded
from pipeline.arena.statistics import Reading, Statistics
from pipeline.arena.task_tokens import Task
from pipeline.core.errors import UserError, clipped, first_line, refused_by_machine
from pipeline.data import base_models
from pipeline.methods import adapters, planning
from pipeline.methods.planning import Plan
from pipeline.params import LsrParams, TrainView
from pipeline.training import run
from pipeline.training.callbacks import DivergedError, StopAtDivergence

AT_ONCE = 64  # examples per batch if no gradient is needed
# Exceptions of a method during training, which become a record as well, unless the machine is their cause.
BROKEN = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)
NOTHING: dict[str, Any] = {"validation": (), "test": (), "loss": (), "predicted": ()}  # if it did not finish


def measure(training: Training) -> Record:
    """Return the record of one training; a mistake or a divergence is a record too, with its reason.

    After every epoch the model is scored, in the precision of training, on the held-out validation split, and on the
    test split, which no decision uses.
    """
    machine.forget_peak()
    view, scored = training.view, None
    seconds: dict[str, float] = {}
    counts = dict.fromkeys(("trained", "stored", "head", "file_bytes"), 0)
    status, reason = "finished", ""
    rounded: dict[str, Rounded] = {}
    try:
        with _timed(seconds, "load"):
            splits = task_tokens.splits(task_of(training))
            collate = tasks.of(view.dataset).collator(base_models.load_tokenizer(view.base_model))
        with _timed(seconds, "start"):
            plan = planned(training)
            read = statistics_of(training, plan)
            model = started(training, plan, read)
            counts = counts_of(model, view)
        seconds["start"] += read.spared if read else 0.0  # each training is charged for the short run that it needs
        scored = Scored(model, view, splits, collate)
        with _timed(seconds, "train"):
            if training.is_trained:
                train(model, view, splits, collate, scored)
            else:
                counts["trained"] = 0
                scored.score_once()
        if training.is_rounded:
            with _timed(seconds, "round"):
                rounded = dict(in_precisions(model, scored))
    except DivergedError as error:
        status, reason = "diverged", str(error)
    except UserError as error:
        status, reason = "failed", str(error).replace("\n", "; ")
    except BROKEN as error:
        if refused_by_machine(error):
            raise
        status, reason = "failed", clipped(f"{type(error).__name__}: {first_line(error)}")
    if scored is not None:
        seconds |= {"train": seconds["train"] - scored.seconds, "score": scored.seconds}
    fields = {
        **{name: getattr(training, name) for name in ("key", "preset", "task", "method", "rate", "head_rate", "seed")},
        "overrides": training.overrides,
        "reads": training.reads.model_dump(mode="json"),
        "adapter": view.adapter,
        "status": status,
        "reason": reason,
        "metrics": view.dataset.metrics,
        **(NOTHING if scored is None or reason else scored.columns()),
        "rounded": rounded,
        **counts,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "peak_bytes": machine.peak_bytes(),
        "made": machine.made(),
    }
    return Record.model_validate(fields)


def counts_of(model: PeftModel, view: TrainView) -> dict[str, int]:
    """Return the sizes of a model's adapter and head, and of the adapter's file, as the fields of a record."""
    counts = adapters.count_parameters(model, view.base_model)
    with tempfile.TemporaryDirectory() as folder:
        adapters.save_adapter(model, Path(folder), view.base_model)
        file_bytes = Path(folder, WEIGHTS).stat().st_size
    named = {"trained": "adapter_trained", "stored": "adapter_stored", "head": "head_parameters"}
    return {**{name: counts[key] for name, key in named.items()}, "file_bytes": file_bytes}


def task_of(training: Training) -> Task:
    """Return what determines the tokens of a training."""
    view = training.view
    return Task(training.task, view.dataset, view.base_model, view.tokenize.max_length, training.reads)


def planned(training: Training) -> Plan:
    """Return what the section of a training makes of its base model.

    Raises:
        UserError: if the method does not fit the model.
    """
    view = training.view
    base, task_type = base_models.outline(view.base_model, view.dataset), tasks.of(view.dataset).peft_task
    return planning.resolve(view.section, base, view.base_model, view.seed, task_type)


def started(training: Training, plan: Plan, read: Statistics | None) -> PeftModel:
    """Return the base model with its adapter, before training.

    Raises:
        UserError: if the method does not fit the model, or the initialization fails on what was read.
    """
    view = training.view
    set_seed(view.seed)  # the head is drawn when the checkpoint loads: all methods have the same one
    base = base_models.load_base_model(view.base_model, view.dataset)
    if read:
        base.load_state_dict(read.head, strict=False)  # as trained, if the initialization goes on from it
    layers = read.layers if read else {}
    model = adapters.add_adapter(base, plan, layers)
    for _ in adapters.start(model, plan, layers):
        pass
    return model


def statistics_of(training: Training, plan: Plan) -> Statistics | None:
    """Return the gradients or updates that the frames are from; None if the initialization reads no examples.

    Raises:
        UserError: if the examples are not suitable for the initialization.
    """
    section = plan.section
    if not (isinstance(section, LsrParams) and section.reads_examples):
        return None
    return statistics.read(Reading(task_of(training), plan, section, training.seed))


def train(model: PeftModel, view: TrainView, splits: Mapping[str, Dataset], collate: Any, scored: "Scored") -> None:
    """Fit the adapter and the head.

    Raises:
        DivergedError: if the loss or the outputs become infinite or NaN.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = run.trainer_of(
            view,
            model,
            splits,
            collate,
            Path(folder),
            [StopAtDivergence(), scored],
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            report_to=[],
        )
        trainer.train()
        scored.take_losses(trainer)


def in_precisions(model: PeftModel, scored: "Scored") -> Iterator[tuple[str, Rounded]]:
    """Yield each precision and what the trained adapter, with its head, takes and scores in it; the model is restored.

    In float32 the scores are those of the last epoch.
    """
    trained = get_peft_model_state_dict(model, save_embedding_layers=False)
    state = {name: value.clone() for name, value in trained.items()}
    for precision in PRECISIONS:
        stored = pack(state, precision)
        validation, test = scored.validation[-1], scored.test[-1]
        if precision != "float32":
            set_peft_model_state_dict(model, unpack(stored))
            validation, test, _ = scored.scores()
        values = dict(zip(test, _rounded(list(test.values())), strict=True))
        yield precision, Rounded(bytes=len(save(stored)), validation=_rounded([validation])[0], test=values)
    set_peft_model_state_dict(model, state)


class Scored(TrainerCallback):
    """Scores a model after every epoch, and keeps the predictions of the best epoch."""

    def __init__(self, model: PeftModel, view: TrainView, splits: Mapping[str, Dataset], collate: Any) -> None:
        self.model, self.view, self.splits, self.collate = model, view, splits, collate
        self.validation: list[float] = []
        self.test: list[dict[str, float]] = []
        self.predicted: NDArray[Any] = np.zeros(0)
        self.loss: list[float] = []
        self.seconds = 0.0

    def on_epoch_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Score the model."""
        begin = machine.clock()
        self.score_once()
        self.model.train()
        self.seconds += machine.clock() - begin

    def score_once(self) -> None:
        """Add the scores of the model as it is. Among epochs with equal scores the last is the best."""
        validation, test, predicted = self.scores()
        if not self.validation or validation >= max(self.validation):
            self.predicted = predicted
        self.validation.append(validation)
        self.test.append(test)

    def scores(self) -> tuple[float, dict[str, float], NDArray[Any]]:
        """Return the validation score of the model as it is, its test metrics, and its answers on the test split."""
        validation, _ = self._of("validation")
        return validation[self.view.dataset.metrics[0]], *self._of("test")

    def take_losses(self, trainer: Trainer) -> None:
        """Take the mean loss of every epoch from the Trainer's log."""
        logged = [(entry["epoch"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
        for epoch in range(len(self.validation)):
            inner = [loss for at, loss in logged if epoch < at <= epoch + 1]
            self.loss.append(float(np.mean(inner)) if inner else self.loss[-1])

    def columns(self) -> dict[str, Any]:
        """Return the fields of a record."""
        return {
            "validation": _rounded(self.validation),
            "test": tuple(dict(zip(one, _rounded(list(one.values())), strict=True)) for one in self.test),
            "loss": _rounded(self.loss),
            "predicted": _rounded(self.predicted.tolist()),
        }

    def _of(self, name: str) -> tuple[dict[str, float], NDArray[Any]]:
        task = tasks.of(self.view.dataset)
        found = evaluation.outcome(task, self.model, self.splits[name], self.collate, AT_ONCE)
        if not found.outputs.isfinite().all():
            raise DivergedError(f"train: outputs for {name} are not finite: lower the learning rate")
        return task.scores(found), task.predicted(found)


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)


@contextmanager
def _timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    begin = machine.clock()
    try:
        yield
    finally:
        seconds[what] = machine.clock() - begin
