"""Run one cell: start the adapter, train it, score it."""

import math
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from transformers import set_seed

from benchmarks.init import experiment
from benchmarks.init.experiment import Cell, Sizes
from pipeline import params
from pipeline.data import datasets, tokens
from pipeline.evaluation import inference, scores
from pipeline.methods import adapters, base_models
from pipeline.params import LsrParams, TrainView
from pipeline.training import arguments, run
from stages import tokenize

EXAMPLES_AT_ONCE = 64  # where no gradient is needed
Line = dict[str, Any]  # of JSON


def measure(cell: Cell) -> Line:
    """Return what one training came to, with the cell's key.

    `curve` holds (optimizer step, validation score) pairs; `best` is the highest of these scores, `last` that of the
    trained model. `test` is the trained model's score, `stored` counts the elements of its file.
    """
    begin = time.perf_counter()
    view = cell.view()
    splits = _splits(view)
    model = _started(view, splits["train"])
    curve = _train(model, view, splits)
    test = _score(model, view, splits["test"])
    counts = adapters.count_parameters(model, view.base_model)
    return {
        "key": cell.key(),
        "name": cell.name,
        "rate": cell.rate,
        "seed": cell.seed,
        "curve": curve,
        "best": max(score for _, score in curve),
        "last": curve[-1][1],
        "test": test,
        "trained": counts["adapter_trained"],
        "stored": counts["adapter_stored"],
        "seconds": round(time.perf_counter() - begin, 2),
    }


def _started(view: TrainView, train: Dataset) -> PeftModel:
    set_seed(view.seed)  # the head is drawn when the checkpoint loads: all methods have the same one
    base = base_models.load_base_model(view.base_model, view.dataset)
    model = adapters.add_adapter(base, view.section, view.base_model, view.seed)
    if isinstance(view.section, LsrParams):
        batches = _batches(train.select(range(min(view.section.examples, len(train)))), view)
        for _ in adapters.start(model, view.section, batches):
            pass
    return model


def _batches(examples: Dataset, view: TrainView) -> Iterator[dict[str, Tensor]]:
    collate = tokens.collator(base_models.load_tokenizer(view.base_model))
    for batch in examples.remove_columns("length").iter(EXAMPLES_AT_ONCE):
        yield dict(collate(batch))


def _train(model: PeftModel, view: TrainView, splits: dict[str, Dataset]) -> list[tuple[int, float]]:
    """Fit the adapter and the head; return the validation scores by optimizer step."""
    steps = view.train.epochs * run.steps_an_epoch(view, splits["train"])
    with tempfile.TemporaryDirectory() as folder:
        trainer = run.trainer_of(
            view,
            model,
            splits,
            tokens.collator(base_models.load_tokenizer(view.base_model)),
            Path(folder),
            per_device_eval_batch_size=EXAMPLES_AT_ONCE,
            eval_strategy="steps",
            eval_steps=math.ceil(steps / experiment.SIZES.evaluations),
            save_strategy="no",
            load_best_model_at_end=False,
        )
        trainer.train()
        curve = arguments.curves(trainer.state.log_history)["validation_score"]
        if curve[-1][0] < steps:
            curve.append((steps, trainer.evaluate()["eval_score"]))
    return curve


def _score(model: PeftModel, view: TrainView, split: Dataset) -> float:
    collate = tokens.collator(base_models.load_tokenizer(view.base_model))
    outputs = inference.logits(model, split, collate, EXAMPLES_AT_ONCE, lambda done: None)
    metric = view.dataset.metrics[0]
    predicted = inference.predicted(outputs.numpy(), view.dataset)
    return scores.score([metric], predicted, np.asarray(split["label"]))[metric]


def _splits(view: TrainView) -> dict[str, Dataset]:
    return _tokenized(view.data, view.model, experiment.SIZES)


@cache
def _tokenized(data: str, model: str, sizes: Sizes) -> dict[str, Dataset]:
    """The first rows of each split as tokens; outside train the longest first, so that batches have little padding."""
    tokenizer = base_models.load_tokenizer(params.load_row("model", model))
    texts = datasets.load(params.load_row("data", data), data).splits
    found = {}
    for split in datasets.SPLITS:
        table, lengths = tokenize.tokenize(texts[split], tokenizer, sizes.longest)
        table = table.select([name for name in table.column_names if name in tokens.INPUTS])
        table = table.filter(lengths <= sizes.longest).slice(0, getattr(sizes, split))
        found[split] = Dataset(table if split == "train" else table.sort_by([("length", "descending")]))
    return found
