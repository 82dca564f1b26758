"""Run one training of the arena: initialize the adapter, train it, and score it after every epoch."""

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save
from transformers import TrainerCallback, TrainerState, set_seed

from lsr.algebra.rounding import PRECISIONS, pack, unpack
from lsr.serve.file import FILE
from lsr.tuner.files import WEIGHTS
from pipeline import evaluation, tasks
from pipeline.arena import completions, features, record, statistics, task_tokens
from pipeline.arena.plan import Training
from pipeline.arena.record import Record, Rounded
from pipeline.arena.statistics import Statistics
from pipeline.core.errors import UserError, clipped, first_line, refused_by_machine
from pipeline.data import base_models
from pipeline.methods import adapters, banks, planning
from pipeline.methods.adapter_task import AdapterTask
from pipeline.methods.planning import Plan
from pipeline.methods.statistics import of_adapter
from pipeline.params import LsrParams, TrainView
from pipeline.tasks import Outcome, TenantsTask
from pipeline.tasks.cells import rounded
from pipeline.tasks.completion import LOSS
from pipeline.training import run
from pipeline.training.callbacks import DivergedError, StopAtDivergence

AT_ONCE = 64  # examples per batch if no gradient is needed
FLOAT = 4  # bytes
DIGITS = 6  # of scores and predictions in a record
# Exceptions of a method during training, which become a record as well, unless the machine is their cause.
BROKEN = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)
SAME = ("key", "preset", "task", "method", "rate", "head_rate", "seed")  # in a training and its record


def measure(training: Training) -> Record:
    """Return the record of one training; a mistake or a divergence is a record too, with its reason.

    After every epoch the model is scored, in the precision of training, on the held-out validation split, and on the
    test split, which no decision uses.
    """
    view, seconds = training.view, defaultdict[str, float](float)
    found: dict[str, Any] = {"status": "finished", "reason": ""}
    try:
        with _timed(seconds, "load"):
            splits = task_tokens.splits(training)
            collate = tasks.of(view.dataset).collator(base_models.load_tokenizer(view.base_model))
        scored = Scored(training, splits, collate, seconds)
        if training.features:
            with _timed(seconds, "train"):
                outcomes, parameters = features.outcomes(training, splits, collate, AT_ONCE)
                scored.add(outcomes)
                found |= {"stored": parameters, "file_bytes": FLOAT * parameters}
        elif training.is_alone:
            with _timed(seconds, "score"):
                scored.add(completions.alone(training, splits))
        else:
            found |= fitted(training, splits, collate, scored, seconds)
        found |= {"validation": scored.validation, "test": scored.test, "predicted": scored.predicted}
    except DivergedError as error:
        found |= {"status": "diverged", "reason": str(error)}
    except UserError as error:
        found |= {"status": "failed", "reason": str(error).replace("\n", "; ")}
    except BROKEN as error:
        if refused_by_machine(error):
            raise
        found |= {"status": "failed", "reason": clipped(f"{type(error).__name__}: {first_line(error)}")}
    return Record.model_validate(
        {name: getattr(training, name) for name in SAME}
        | found
        | {
            "metrics": view.dataset.metrics,
            "seconds": {name: round(value, 2) for name, value in seconds.items()},
            "made": record.made(),
        }
    )


def fitted(
    training: Training, splits: Mapping[str, Dataset], collate: Any, scored: "Scored", seconds: dict[str, float]
) -> dict[str, Any]:
    """Train an adapter; return its sizes as fields of a record."""
    view, task = training.view, tasks.of(training.view.dataset)
    plan = planned(training)
    read = statistics.read(training, plan)
    seconds["start"] = read.seconds  # each training is charged for the short run that it needs
    with _timed(seconds, "start"):
        model = scored.model = started(training, plan, read)
        found: dict[str, Any] = counts_of(model, training)
    with _timed(seconds, "train"):
        if training.is_trained:
            train(model, view, splits, collate, scored)
        else:
            scored.score_once()
    if training.is_rounded:
        with _timed(seconds, "round"):
            found["rounded"] = dict(in_precisions(model, scored))
    if isinstance(task, TenantsTask):
        with _timed(seconds, "bank"):
            found |= bank_sizes(model, view, task)
    return found


def counts_of(model: PeftModel, training: Training) -> dict[str, int]:
    """Return the sizes of a model's adapter, and of its file, as the fields of a record."""
    base_model = training.view.base_model
    counts = adapters.count_parameters(model, base_model)
    with tempfile.TemporaryDirectory() as folder:
        adapters.save_adapter(model, Path(folder), base_model)
        file_bytes = Path(folder, WEIGHTS).stat().st_size
    trained = counts["adapter_trained"] if training.is_trained else 0
    return {"trained": trained, "stored": counts["adapter_stored"], "file_bytes": file_bytes}


def bank_sizes(model: PeftModel, view: TrainView, task: TenantsTask) -> dict[str, int]:
    """Return the bytes of the files of a bank in float32, and of each tenant's part, as fields of a record."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        adapters.save_adapter(model, folder, view.base_model)
        AdapterTask.of(task, view.tokenize.max_length).write(folder)
        banks.of_adapter(view.base_model, folder).save(folder / "bank")
        files = {file.name: file.stat().st_size for file in (folder / "bank").rglob("*.safetensors")}
    return {"file_bytes": sum(files.values()), "tenant_bytes": files[FILE] // len(task.tenants)}


def planned(training: Training) -> Plan:
    """Return what the section of a training makes of its base model."""
    view = training.view
    task_tokens.folder_of(training)  # which say who the tenants are
    base, task_type = base_models.outline(view.base_model, view.dataset), tasks.of(view.dataset).peft_task
    return planning.resolve(view.section, base, view.base_model, view.seed, task_type)


def started(training: Training, plan: Plan, read: Statistics) -> PeftModel:
    """Return the base model with its adapter, before training."""
    view = training.view
    set_seed(view.seed)  # the head is drawn when the checkpoint loads: all methods have the same one
    base = base_models.load_base_model(view.base_model, view.dataset)
    base.load_state_dict(read.head, strict=False)  # as trained, if the initialization goes on from it
    section, layers = view.section, read.layers
    if isinstance(section, LsrParams) and section.source:
        layers = of_adapter(section.source, base, plan, view)
    model = adapters.add_adapter(base, plan, layers)
    for _ in adapters.start(model, plan, layers):
        pass
    return model


def train(model: PeftModel, view: TrainView, splits: Mapping[str, Dataset], collate: Any, scored: "Scored") -> None:
    """Fit the adapter and the head."""
    alone: dict[str, Any] = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
    with tempfile.TemporaryDirectory() as folder:
        callbacks = [StopAtDivergence(), scored]
        run.trainer_of(view, model, splits, collate, Path(folder), callbacks, report_to=[], **alone).train()


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
        yield precision, Rounded(bytes=len(save(stored)), validation=validation, test=test)
    set_peft_model_state_dict(model, state)


class Scored(TrainerCallback):
    """Scores a model after every epoch, and keeps the predictions of the best epoch."""

    def __init__(
        self, training: Training, splits: Mapping[str, Dataset], collate: Any, seconds: dict[str, float]
    ) -> None:
        self.model: Any = None  # to be scored
        self.training, self.task = training, tasks.of(training.view.dataset)
        self.splits, self.collate = splits, collate
        self.seconds = seconds  # takes the time of scoring out of that of training
        self.validation: list[float] = []
        self.test: list[dict[str, float]] = []
        self.predicted: list[float] = []

    def on_epoch_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Score the model."""
        before = self.seconds["score"]
        with _timed(self.seconds, "score"):
            self.score_once()
            self.model.train()
        self.seconds["train"] -= self.seconds["score"] - before

    def score_once(self) -> None:
        """Add the scores of the model as it is."""
        self.add(self._outcomes())

    def add(self, outcomes: Mapping[str, Outcome]) -> None:
        """Add the scores of what a model says. Among epochs with equal scores the last is the best."""
        validation, test, predicted = self._of(outcomes)
        if not self.validation or validation >= max(self.validation):
            self.predicted = predicted
        self.validation.append(validation)
        self.test.append(test)

    def scores(self) -> tuple[float, dict[str, float], list[float]]:
        """Return the validation score of the model as it is, its test metrics, and its answers on the test split."""
        return self._of(self._outcomes())

    def _outcomes(self) -> dict[str, Outcome]:
        if self.training.writes:
            return completions.outcomes(self.training, self.model, self.splits)
        read = {split: self.splits[split] for split in ("validation", "test")}
        return {
            split: evaluation.outcome(evaluation.outputs(self.task, self.model, rows, self.collate, AT_ONCE), rows)
            for split, rows in read.items()
        }

    def _of(self, outcomes: Mapping[str, Outcome]) -> tuple[float, dict[str, float], list[float]]:
        scores = dict[str, dict[str, float]]()
        self.task.settle(outcomes["validation"])
        for split, found in outcomes.items():
            if not found.outputs.isfinite().all():
                raise DivergedError(f"train: outputs for {split} are not finite: lower the learning rate")
            scores[split] = {name: rounded(value, DIGITS) for name, value in self.task.scores(found).items()}
        predicted = [rounded(value, DIGITS) for value in self.task.predicted(outcomes["test"]).ravel().tolist()]
        decides = LOSS if self.training.writes else self.task.row.metrics[0]
        return scores["validation"][decides], scores["test"], predicted


@contextmanager
def _timed(seconds: dict[str, float], what: str) -> Iterator[None]:
    begin = record.clock()
    try:
        yield
    finally:
        seconds[what] += record.clock() - begin
