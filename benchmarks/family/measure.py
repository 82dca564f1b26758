"""Run one cell: initialize the adapter, train it, score it."""

import tempfile
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
from datasets import Dataset
from peft import PeftModel
from transformers import DataCollatorWithPadding, set_seed

from benchmarks.family import experiment, inputs
from benchmarks.family.experiment import Cell
from benchmarks.family.methods import ALL_LINEAR
from pipeline.arena.gradients import Found, Reading, gradients, with_heads
from pipeline.arena.inputs import Task, splits
from pipeline.data import tokens
from pipeline.evaluation import inference, scores
from pipeline.methods import adapters, base_models
from pipeline.params import LsrParams, TrainView
from pipeline.training import run

AT_ONCE = 64  # examples per batch if no gradient is needed
Line = dict[str, Any]  # of JSON


def measure(cell: Cell) -> Line:
    """Return the results of one training, with the cell's key.

    `validation` and `test` are scores of the model at the end of training, in fp32; no earlier step is selected.
    `stored` counts the parameters in the adapter's file. Pooled frames are shared by many adapters: each stores only
    its core, and `pooled` counts the frames.
    """
    begin = time.perf_counter()
    view = cell.view()
    read = splits(task_of(cell))
    model = started(cell)
    train(model, view, read)
    counts = adapters.count_parameters(model, view.base_model)
    trained, stored = counts["adapter_trained"], counts["adapter_stored"]
    pooled = stored - trained if getattr(view.section, "frames_from", ()) else 0
    return {
        "key": cell.key(),
        "name": cell.run.name,
        "layers": cell.layers,
        "rate": cell.rate,
        "seed": cell.seed,
        "validation": _score(model, view, read["validation"]),
        "test": _score(model, view, read["test"]),
        "trained": trained,
        "stored": stored - pooled,
        "pooled": pooled,
        "seconds": round(time.perf_counter() - begin, 2),
    }


def started(cell: Cell) -> PeftModel:
    """Return the base model with the adapter of a cell, before training."""
    view = cell.view()
    found = _gradients(cell, view.section) if isinstance(view.section, LsrParams) else []
    set_seed(view.seed)  # the head is drawn when the checkpoint loads: all methods have the same one
    base = base_models.load_base_model(view.base_model, view.dataset)
    read = with_heads(base, found)
    model = adapters.add_adapter(base, view.section, view.base_model, view.seed, read)
    if isinstance(view.section, LsrParams):
        for _ in adapters.start(model, view.section, read):
            pass
    return model


def task_of(cell: Cell, data: str | None = None) -> Task:
    """Return the inputs of a cell from its data set, or from another one."""
    view = cell.view()
    name = data or view.data
    return inputs.task(name, view.model, view.tokenize.max_length, experiment.sizes(cell.run.protocol, name))


def _gradients(cell: Cell, section: LsrParams) -> list[Found]:
    """Return the gradients of the data sets for the frames: the cell's own, or a pool.

    They are computed for all linear layers, whichever are adapted, so that an update is the same for all methods.
    """
    if not section.reads_examples:
        return []
    view = cell.view()
    base = base_models.load_base_model(view.base_model, view.dataset)
    every = tuple(name for name, _ in base.named_modules() if name.endswith(_endings(ALL_LINEAR)))
    wanted = _endings(cast("tuple[str, ...]", section.target_modules))
    found = [
        gradients(Reading(section.init, task_of(cell, data), section.examples, section.head_steps, view.seed, every))
        for data in section.frames_from or (view.data,)
    ]
    return [
        made._replace(gradients={name: value for name, value in made.gradients.items() if name.endswith(wanted)})
        for made in found
    ]


def _endings(targets: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f".{target}" for target in targets)


def train(model: PeftModel, view: TrainView, splits: dict[str, Dataset]) -> None:
    """Train the adapter and the head."""
    with tempfile.TemporaryDirectory() as folder:
        run.trainer_of(
            view,
            model,
            splits,
            _collator(view),
            Path(folder),
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
        ).train()


def _score(model: PeftModel, view: TrainView, split: Dataset) -> float:
    outputs = inference.logits(model, split, _collator(view), AT_ONCE, lambda done: None)
    known = np.nan_to_num(outputs.numpy())  # a diverged model predicts the same for every example
    metric = view.dataset.metrics[0]
    return scores.score([metric], inference.predicted(known, view.dataset), np.asarray(split["label"]))[metric]


def _collator(view: TrainView) -> DataCollatorWithPadding:
    return tokens.collator(base_models.load_tokenizer(view.base_model))
