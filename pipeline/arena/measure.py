"""Run one training run of the arena: initialize the adapter, train it, and score it after every epoch."""

import math
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save
from transformers import TrainerCallback, TrainerState, set_seed

from lsr.algebra.rounding import PRECISIONS
from lsr.serve.bank import AdapterBank
from lsr.serve.file import FILE
from lsr.tuner.files import WEIGHTS
from lsr.tuner.packing import pack, unpack
from lsr_onnx.errors import first_line, format_rejection
from pipeline import evaluation, tasks
from pipeline.arena import features, record, task_tokens, unseen
from pipeline.arena.plan import TrainingRun
from pipeline.arena.record import DIGITS, Quantized, Record
from pipeline.arena.task_tokens import AT_ONCE
from pipeline.core.errors import UserError, describe_machine_error
from pipeline.data import base_models
from pipeline.methods import adapters, banks, label_units, planning, statistics
from pipeline.methods.adapter_task import AdapterTask
from pipeline.methods.batches import tokenizer_of
from pipeline.methods.device import fastest
from pipeline.methods.heads import GroupHead
from pipeline.methods.planning import Plan
from pipeline.params import TrainView
from pipeline.tasks import Outcome, Task
from pipeline.tasks.cells import round_significant
from pipeline.tasks.prompts import Prompts
from pipeline.tasks.task import Numbers
from pipeline.training import fit, run, shared_head
from pipeline.training.run import DivergedError
from pipeline.training.shared_head import SharedHead

SCORED = ("validation", "test")
LOGITS_AT_ONCE = 16  # examples, of whose tokens all logits are in memory
ALONE: dict[str, Any] = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
# Exceptions of a method during training, which become a record as well, unless the machine is their cause.
BROKEN = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)


def measure(training: TrainingRun) -> Record:
    """Run a training run and return its record; errors and divergence are recorded with their reason.

    After every epoch the model is scored, in the precision of training, on the held-out validation split, and on the
    test split, which no decision uses.
    """
    measured = Run(training)
    try:
        outcome = {"status": "finished", "reason": "", **measured.result()}
    except DivergedError as error:
        outcome = {"status": "diverged", "reason": str(error)}
    except UserError as error:
        outcome = {"status": "failed", "reason": str(error).replace("\n", "; ")}
    except BROKEN as error:
        if describe_machine_error(error):
            raise
        reason = format_rejection(f"{type(error).__name__}: {first_line(error)}")
        outcome = {"status": "failed", "reason": reason}
    return Record.model_validate(
        vars(training)  # a record has its names, rates, seed and key
        | outcome
        | {
            "metrics": training.view.dataset.metrics,
            "seconds": {name: round(value, 2) for name, value in measured.seconds.items()},
            "made": record.describe_provenance(),
        }
    )


class Run(TrainerCallback):
    """A training run: its model is scored after every epoch, and the predictions of the best epoch are kept."""

    def __init__(self, training: TrainingRun) -> None:
        self.training = training
        self.task = tasks.of(training.view.dataset)  # its facts are read with the tokens
        self.best_epoch = 0  # number of epochs before it
        self.best_task = self.task  # with the thresholds of the best epoch
        self.seconds = defaultdict[str, float](float)  # seconds by activity
        self.splits: Mapping[str, Dataset] = {}
        self.model: Any = None
        self.tokenizer: Any = None  # pads batches for the model
        self.shared: SharedHead | None = None  # the head in which groups of tenants share rows
        self.group_heads: Sequence[GroupHead] = ()  # the rows of these groups
        self.best_group_heads: Sequence[GroupHead] = ()  # those of the best epoch
        self.validation: list[float] = []
        self.test: list[dict[str, float]] = []
        self.predicted: list[float] = []

    def result(self) -> dict[str, Any]:
        """Train and score; return sizes and scores as fields of a record."""
        sizes: dict[str, Any] = {}
        with self._measure_time("load"):
            self.splits = task_tokens.splits(self.training)
            self.task = task_tokens.task_of(self.training)
        if self.training.chosen.features:
            with self._measure_time("train"):
                measured = features.measure(self.training, self.task, self.splits, AT_ONCE)
                self._add(measured.outcomes)
            sizes = {"stored": measured.parameters, "file_bytes": 4 * measured.parameters}  # 4 bytes per float32
            sizes["unseen"] = measured.unseen
        elif self.training.is_alone:
            view = self.training.view
            self.model = base_models.load_base_model(view.base_model, self.task)
            self.tokenizer = tokenizer_of(self.model, view.base_model)
            self.model.to(fastest())
            with self._measure_time("score"):
                self._add(self._outcomes())
        else:
            self._train()
            sizes |= sizes_of(self.model, self.task, self.training)
            if self.training.unseen_tenants:
                with self._measure_time("score"):
                    sizes["unseen"] = self._score_unseen()
            if self.training.is_quantized:
                with self._measure_time("quantize"):
                    sizes["quantized"] = dict(self._in_precisions())
        return {**sizes, "validation": self.validation, "test": self.test, "predicted": self.predicted}

    def _train(self) -> None:
        """Fit adapter and head, unless they are scored right after initialization."""
        with self._measure_time("start"):
            self.model = build_model(self.training, self.task, self.splits["train"])
            self.tokenizer = tokenizer_of(self.model, self.training.view.base_model)
        with self._measure_time("train"):
            if not self.training.chosen.trained:
                self._add(self._outcomes())
                return
            train = self.splits["train"]
            run.weigh_classes(self.training.view, self.task, self.model.get_base_model(), train)
            view = run.with_enough_steps(self.training.view, train)
            with shared_head.prepare_head(self.task, self.model, view.tenants.head) as shared:
                self.shared = shared
                self._fit(view)
            if view.train.refit:
                self._refit(view)

    def _fit(self, view: TrainView) -> None:
        """Fit the model, whose tenants may share rows of the head."""
        with tempfile.TemporaryDirectory() as folder:
            trainer = run.trainer_of(
                view,
                self.task,
                self.model,
                self.splits,
                self.task.head.collator(self.tokenizer),
                Path(folder),
                [run.StopAtDivergence(), self],
                report_to=[],
                **ALONE,
            )
            trainer.train()
        if self.shared is not None:
            self._choose_shares()
            self.shared.add_deviations()
            self.shared = None

    def _refit(self, view: TrainView) -> None:
        """Train again on train and validation together, and replace the test scores and answers of the best epoch."""
        best = self.best_epoch
        epochs = self.training.epochs or 1 + best
        examples = fit.join(self.splits)
        counted = fit.count_tenants(self.task, examples)
        self.model = None  # memory should hold one base model
        self.model = build_model(self.training, counted, self.splits["train"])
        base = self.model.get_base_model()
        self.tokenizer = tokenizer_of(base, view.base_model)
        run.weigh_classes(view, counted, base, examples)
        collate = self.task.head.collator(self.tokenizer)
        with tempfile.TemporaryDirectory() as folder:
            _, self.group_heads = fit.refit(
                view,
                counted,
                self.model,
                examples,
                collate,
                Path(folder),
                fit.Choice(epochs, self.best_group_heads),
                [run.StopAtDivergence()],
            )
        self.task = self.best_task  # thresholds are not chosen again
        _, self.test[best], self.predicted = self._scores(self.task, self._outcomes())

    def _score_unseen(self) -> unseen.Scores:
        """Return the scores of the tenants without any text in training."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            bank = build_bank(self.model, self.task, self.training, folder)
            tenants = list(self.task.facts.tenants)
            bank.add_groups(banks.make_group_entries(bank, tenants, self.group_heads))
            return unseen.score_bank(self.training, bank)

    def on_epoch_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Score the model, untimed; after the last epoch alone if the number of epochs is tuned."""
        if self.training.epochs is not None and round(state.epoch or 0) < self.training.epochs:
            return
        before = self.seconds["score"]
        with self._measure_time("score"):
            if self.shared is not None:
                self._choose_shares()
            self._add(self._outcomes())
            if self.shared is not None:
                self.shared.keep_all()
            self.model.train()
        self.seconds["train"] -= self.seconds["score"] - before
        patience = self.training.view.train.patience
        if patience != "none":
            control.should_training_stop |= run.lacks_gain(self.validation, patience)

    def _choose_shares(self) -> None:
        """Keep the shares of tenants' deviations that are best on validation."""
        assert self.shared is not None
        collate = self.task.head.collator(self.tokenizer)
        validation = self.splits["validation"]
        self.group_heads = shared_head.choose_shares(self.task, self.model, self.shared, validation, collate, AT_ONCE)

    def _in_precisions(self) -> Iterator[tuple[str, Quantized]]:
        """Yield each precision with the size and scores of the quantized adapter and head."""
        trained = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        state = {name: value.clone() for name, value in trained.items()}
        for precision in PRECISIONS:
            stored = pack(state, precision)
            set_peft_model_state_dict(self.model, unpack(stored))
            outcomes = self._outcomes()
            task = self.task.tune_thresholds(outcomes["validation"])
            validation, test, _ = self._scores(task, outcomes)
            yield precision, Quantized(bytes=len(save(stored)), validation=validation, test=test)

    def _add(self, outcomes: Mapping[str, Outcome]) -> None:
        """Add the scores of an epoch. Among epochs with equal scores, the last is the best."""
        task = self.task.tune_thresholds(outcomes["validation"])
        validation, test, predicted = self._scores(task, outcomes)
        if not self.validation or validation >= max(self.validation):
            self.best_epoch = len(self.validation)
            self.best_task = task
            self.best_group_heads = self.group_heads
            self.predicted = predicted
        self.validation.append(validation)
        self.test.append(test)

    def _outcomes(self) -> dict[str, Outcome]:
        """Return the present model's answers for validation and test."""
        return self.task.scoring.answers(self)

    def by_outputs(self) -> dict[str, Outcome]:
        """Return the model's outputs for both splits."""
        return {split: self._outcome(split, AT_ONCE) for split in SCORED}

    def by_bank(self) -> dict[str, Outcome]:
        """Return the model's outputs; a bank of tenants is not needed."""
        return self.by_outputs()

    def by_texts(self) -> dict[str, Outcome]:
        """Return the loss of the completions of validation, and the texts that are generated for test."""
        prompts = Prompts(self.tokenizer, self.task.entry.template)
        count = self.training.sample_sizes.max_new_tokens
        assert count is not None  # the tokens are read before
        is_bf16 = self.training.view.train.precision == "bf16"
        # The precision of the Trainer, which does not set it for a model that is not trained.
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=is_bf16):
            written = evaluation.evaluate_generation(
                self.task, self.model, self.splits["test"], prompts, count, AT_ONCE
            )
            return {"validation": self._outcome("validation", LOGITS_AT_ONCE), "test": written}

    def _outcome(self, split: str, at_once: int) -> Outcome:
        examples = self.splits[split]
        head = self.task.head
        outputs = evaluation.outputs(head, self.model, examples, head.collator(self.tokenizer), at_once)
        return evaluation.outcome(outputs, examples)

    def _scores(self, task: Task, outcomes: Mapping[str, Outcome]) -> tuple[float, dict[str, float], list[float]]:
        """Return the validation score, the test metrics, and the answers on the test split, by a task's thresholds.

        Raises:
            DivergedError: if an output is not finite.
        """
        scores = dict[str, dict[str, float]]()
        for split, outcome in outcomes.items():
            if not outcome.outputs.isfinite().all():
                raise DivergedError(f"train: outputs for {split} are not finite: lower the learning rate")
            scored = task.scoring.scores(outcome)
            scores[split] = {name: round_significant(value, DIGITS) for name, value in scored.items()}
        answers = task.scoring.predict(outcomes["test"])
        predicted = round_answers(answers.ravel())
        return scores["validation"][task.scoring.decides], scores["test"], predicted

    @contextmanager
    def _measure_time(self, what: str) -> Iterator[None]:
        begin = record.clock()
        try:
            yield
        finally:
            self.seconds[what] += record.clock() - begin


def round_answers(answers: Numbers) -> list[float]:
    """Round answers (n,) to six digits of their range, as numbers with a large mean may hardly differ."""
    precise: list[float] = answers.astype(float).tolist()
    spread = max(precise) - min(precise)
    if spread == 0:
        return precise
    decimals = DIGITS - 1 - math.floor(math.log10(spread))
    return [round(answer, decimals) for answer in precise]


def build_plan(training: TrainingRun, task: Task) -> Plan:
    """Resolve the section of a training run for its base model."""
    view = training.view
    return planning.resolve(view, base_models.outline(view.base_model, task))


def build_model(training: TrainingRun, task: Task, train: Dataset) -> PeftModel:
    """Return the base model with its adapter, before training; its initialization may read tokens of `train`."""
    view = training.view
    plan = build_plan(training, task)
    set_seed(view.seed)  # the head is drawn when the checkpoint loads: all methods have the same one
    base = base_models.load_base_model(view.base_model, task)
    label_units.center_head(base, task)
    read = statistics.read(base, plan, view, task, lambda: train)
    model = adapters.add_adapter(base, plan, read)
    adapters.initialize(model, plan, read)
    return model


def sizes_of(model: PeftModel, task: Task, training: TrainingRun) -> dict[str, int]:
    """Return the numbers of parameters and the file size of a model's adapter, as fields of a record.

    For tenants, the file is the bank in float32.
    """
    view = training.view
    counts = adapters.count_parameters(model, view.base_model)
    trained = counts["adapter_trained"] if training.chosen.trained else 0
    sizes = {"trained": trained, "stored": counts["adapter_stored"]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        adapters.save_adapter(model, folder, view.base_model)
        if not task.facts.tenants:
            return {**sizes, "file_bytes": (folder / WEIGHTS).stat().st_size}
        build_bank(model, task, training, folder).save(folder / "bank")
        files = {file.name: file.stat().st_size for file in (folder / "bank").rglob("*.safetensors")}
        sizes["tenant_bytes"] = files[FILE] // len(task.facts.tenants)
        return {**sizes, "file_bytes": sum(files.values())}


def build_bank(model: PeftModel, task: Task, training: TrainingRun, folder: Path) -> AdapterBank:
    """Return the bank of a model's tenants in float32, whose adapter is written into a folder."""
    view = training.view
    adapters.save_adapter(model, folder, view.base_model)
    AdapterTask.of(task, view.tokenize.max_length).write(folder)
    return AdapterBank.of_tenants(folder, banks.base_of(view.base_model))
