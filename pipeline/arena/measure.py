"""Run one training of the arena: initialize the adapter, train it, and score it after every epoch."""

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save
from transformers import TrainerCallback, TrainerState

from lsr.algebra.rounding import PRECISIONS, pack, unpack
from lsr.serve.bank import AdapterBank
from lsr.serve.file import FILE
from lsr.tuner.files import WEIGHTS
from pipeline import evaluation, tasks
from pipeline.arena import features, record, starts, task_tokens
from pipeline.arena.plan import Training
from pipeline.arena.record import Record, Rounded
from pipeline.core.errors import UserError, clipped, first_line, refused_by_machine
from pipeline.data import base_models, tokens
from pipeline.methods import adapters, banks, device
from pipeline.methods.adapter_task import AdapterTask
from pipeline.tasks import CompletionTask, Outcome, TenantsTask
from pipeline.tasks.cells import rounded
from pipeline.tasks.completion import LOSS, Written
from pipeline.training.run import DivergedError, StopAtDivergence, trainer_of

AT_ONCE = 64  # examples or prompts per batch if no gradient is needed
LOGITS_AT_ONCE = 16  # examples, of whose tokens all logits are in memory
FLOAT = 4  # bytes
ALONE: dict[str, Any] = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
DIGITS = 6  # of scores and predictions in a record
# Exceptions of a method during training, which become a record as well, unless the machine is their cause.
BROKEN = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)


def measure(training: Training) -> Record:
    """Return the record of one training; a mistake or a divergence is a record too, with its reason.

    After every epoch the model is scored, in the precision of training, on the held-out validation split, and on the
    test split, which no decision uses.
    """
    run = Run(training)
    try:
        found = {"status": "finished", "reason": "", **run.result()}
    except DivergedError as error:
        found = {"status": "diverged", "reason": str(error)}
    except UserError as error:
        found = {"status": "failed", "reason": str(error).replace("\n", "; ")}
    except BROKEN as error:
        if refused_by_machine(error):
            raise
        found = {"status": "failed", "reason": clipped(f"{type(error).__name__}: {first_line(error)}")}
    return Record.model_validate(
        vars(training)  # of which a record has the names, rates, seed and key
        | found
        | {
            "metrics": training.view.dataset.metrics,
            "seconds": {name: round(value, 2) for name, value in run.seconds.items()},
            "made": record.made(),
        }
    )


class Run(TrainerCallback):
    """One training: its model is scored after every epoch, and the predictions of the best epoch are kept."""

    def __init__(self, training: Training) -> None:
        self.training, self.task = training, tasks.of(training.view.dataset)
        self.seconds = defaultdict[str, float](float)  # by what they were spent on
        self.splits: Mapping[str, Dataset] = {}
        self.collate: Any = None
        self.model: Any = None
        self.validation: list[float] = []
        self.test: list[dict[str, float]] = []
        self.predicted: list[float] = []

    def result(self) -> dict[str, Any]:
        """Do what is to be done; return the sizes and scores as fields of a record."""
        sizes: dict[str, Any] = {}
        with self._timed("load"):
            self.splits = task_tokens.splits(self.training)
            self.collate = self.task.collator(base_models.load_tokenizer(self.training.view.base_model))
        if self.training.chosen.features:
            with self._timed("train"):
                outcomes, parameters = features.outcomes(self.training, self.splits, self.collate, AT_ONCE)
                self._add(outcomes)
            sizes = {"stored": parameters, "file_bytes": FLOAT * parameters}
        elif self.training.is_alone:
            with self._timed("score"):
                self._add(self._alone())
        else:
            self._train()
            if self.training.is_rounded:
                with self._timed("round"):
                    sizes["rounded"] = dict(self._in_precisions())
            sizes |= sizes_of(self.model, self.training)
        return {**sizes, "validation": self.validation, "test": self.test, "predicted": self.predicted}

    def _train(self) -> None:
        """Fit an adapter and the head, unless they are scored as they are initialized."""
        plan = starts.planned(self.training)
        read = starts.read(self.training, plan)
        self.seconds["start"] = read.seconds  # each training is charged for the short run that it needs
        with self._timed("start"):
            self.model = starts.started(self.training, plan, read)
        with self._timed("train"):
            if not self.training.chosen.trained:
                self._add(self._outcomes())
                return
            with tempfile.TemporaryDirectory() as folder:
                chosen = self.training.view, self.model, self.splits, self.collate, Path(folder)
                trainer_of(*chosen, [StopAtDivergence(), self], report_to=[], **ALONE).train()

    def on_epoch_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Score the model, whose time is not that of training."""
        before = self.seconds["score"]
        with self._timed("score"):
            self._add(self._outcomes())
            self.model.train()
        self.seconds["train"] -= self.seconds["score"] - before

    def _in_precisions(self) -> Iterator[tuple[str, Rounded]]:
        """Yield each precision and what the trained adapter, with its head, takes and scores in it.

        In float32 the scores are those of the last epoch. The model is restored.
        """
        trained = get_peft_model_state_dict(self.model, save_embedding_layers=False)
        state = {name: value.clone() for name, value in trained.items()}
        for precision in PRECISIONS:
            stored = pack(state, precision)
            validation, test = self.validation[-1], self.test[-1]
            if precision != "float32":
                set_peft_model_state_dict(self.model, unpack(stored))
                validation, test, _ = self._scores(self._outcomes())
            yield precision, Rounded(bytes=len(save(stored)), validation=validation, test=test)
        set_peft_model_state_dict(self.model, state)

    def _add(self, outcomes: Mapping[str, Outcome]) -> None:
        """Add the scores of what a model says. Among epochs with equal scores the last is the best."""
        validation, test, predicted = self._scores(outcomes)
        if not self.validation or validation >= max(self.validation):
            self.predicted = predicted
        self.validation.append(validation)
        self.test.append(test)

    def _outcomes(self) -> dict[str, Outcome]:
        """Return what the model as it is says of validation and test."""
        if self.training.writes:
            return self._written(self.model)
        read = {split: self.splits[split] for split in ("validation", "test")}
        return {
            split: evaluation.outcome(evaluation.outputs(self.task, self.model, rows, self.collate, AT_ONCE), rows)
            for split, rows in read.items()
        }

    def _written(self, model: Any) -> dict[str, Outcome]:
        """Return the losses of validation, and those of test with what a model writes for its prompts."""
        view, count = self.training.view, self.training.reads.new_tokens
        assert isinstance(self.task, CompletionTask)
        assert count is not None  # the tokens are read before
        held_out, test = self.splits["validation"], self.splits["test"]
        prompts = self.task.prompts(base_models.load_tokenizer(view.base_model))
        # As the Trainer has it: that of a model which no Trainer has is no other.
        with torch.autocast(device.device_of(model).type, torch.bfloat16, enabled=view.train.precision == "bf16"):
            outputs = evaluation.outputs(self.task, model, held_out, self.collate, LOGITS_AT_ONCE)
            written = evaluation.written(self.task, model, test, prompts, count, AT_ONCE)
        return {"validation": evaluation.outcome(outputs, held_out), "test": written}

    def _alone(self) -> dict[str, Outcome]:
        """Return what the base model alone writes, which no seed changes, from the cache if it is there."""
        view, test = self.training.view, self.splits["test"]

        def write(path: Path) -> None:
            found = self._written(device.place(base_models.load_base_model(view.base_model, view.dataset)))
            losses = {split: one.outputs.tolist() for split, one in found.items()}
            path.write_text(json.dumps([losses, cast("Written", found["test"]).said]), encoding="utf-8")

        path = task_tokens.cached("alone", (task_tokens.known(self.training), view.train.precision), write)
        losses, said = json.loads(path.read_text(encoding="utf-8"))
        outputs = {split: torch.tensor(its) for split, its in losses.items()}
        held_out = evaluation.outcome(outputs["validation"], self.splits["validation"])
        return {"validation": held_out, "test": Written(outputs["test"], tokens.labels_of(test), None, said)}

    def _scores(self, outcomes: Mapping[str, Outcome]) -> tuple[float, dict[str, float], list[float]]:
        """Return the validation score, the test metrics, and the answers on the test split.

        Raises:
            DivergedError: if an output is not finite.
        """
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
    def _timed(self, what: str) -> Iterator[None]:
        begin = record.clock()
        try:
            yield
        finally:
            self.seconds[what] += record.clock() - begin


def sizes_of(model: PeftModel, training: Training) -> dict[str, int]:
    """Return the parameters of a model's adapter, and the bytes of its file, as the fields of a record.

    Of tenants, the file is that of the bank in float32, of which each has a part.
    """
    view, task = training.view, tasks.of(training.view.dataset)
    counts = adapters.count_parameters(model, view.base_model)
    trained = counts["adapter_trained"] if training.chosen.trained else 0
    sizes = {"trained": trained, "stored": counts["adapter_stored"]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        adapters.save_adapter(model, folder, view.base_model)
        if not isinstance(task, TenantsTask):
            return {**sizes, "file_bytes": (folder / WEIGHTS).stat().st_size}
        AdapterTask.of(task, view.tokenize.max_length).write(folder)
        AdapterBank.of_tenants(folder, banks.base_of(view.base_model)).save(folder / "bank")
        files = {file.name: file.stat().st_size for file in (folder / "bank").rglob("*.safetensors")}
        return {**sizes, "file_bytes": sum(files.values()), "tenant_bytes": files[FILE] // len(task.tenants)}
