"""Scores by the time from raw text: LSR and LoRA in this pipeline."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from peft import PeftModel
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from benchmarks.processes import in_fresh_process
from pipeline.core import console
from pipeline.data import datasets, tokens
from pipeline.data.encoding import tokenize
from pipeline.evaluation import inference, scores
from pipeline.methods import adapters, base_models
from pipeline.methods.pooling import BATCH
from pipeline.params import LsrParams, TrainView
from pipeline.params.changed import changed
from pipeline.training.run import steps_an_epoch, trainer_of

MODEL, MAX_LENGTH = "minilm", 128
DATA = ("movie-reviews", "tweets", "amazon-reviews", "movie-pairs")
TARGETS = {"movie-reviews": 0.80}  # test accuracy; elsewhere a share of what the better one ends with
SHARE = 0.95
TRAIN, FEWER, TEST, EPOCHS = {"movie-reviews": 2000}, 1280, 500, 2  # examples at most, FEWER elsewhere; and epochs
LOOKS = 6  # evaluations on the test split after the first, with the clock stopped


class Contender(NamedTuple):
    """A name in tables, and the adapter."""

    name: str
    adapter: str


OURS = Contender("this pipeline, LSR", "lsr")
PEER = Contender("this pipeline, LoRA r=8", "lora")


class Row(NamedTuple):
    """A training run: the score on the test split by seconds from raw text and by optimizer step."""

    data: str
    name: str
    trained: int  # parameters of the adapter
    seconds: tuple[float, ...]
    steps: tuple[int, ...]
    scores: tuple[float, ...]

    def reached(self, target: float) -> tuple[float, int] | None:
        """Return the seconds and the step of the first score of at least `target`; None if there is none."""
        found = zip(self.seconds, self.steps, self.scores, strict=True)
        return next(((seconds, step) for seconds, step, score in found if score >= target), None)


def target(rows: Sequence[Row], data: str) -> float:
    """Return the score to reach on a data set, given the rows of all contenders."""
    final = max(row.scores[-1] for row in rows if row.data == data)
    return TARGETS.get(data, SHARE * final)


def run(threads: int) -> Iterator[Row]:
    """Yield a row for each contender on each data set, run in its own process."""
    entries = [(data, contender) for data in DATA for contender in (OURS, PEER)]
    for data, contender in console.track(entries, "race", len(entries), "contenders"):
        yield in_fresh_process(threads, race, data, contender)


class StopWatch(TrainerCallback):
    """Evaluates on the test split, first before training, with the clock stopped."""

    def __init__(self, begin: float, every: int, score: Callable[[], float]) -> None:
        self.begin, self.every, self.score = begin, every, score
        self.seconds: list[float] = []
        self.steps: list[int] = []
        self.scores: list[float] = []

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Evaluate before the first step: an adapter may begin as a short training run has left it."""
        self._look(0)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Evaluate if it is time to."""
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._look(state.global_step)

    def _look(self, step: int) -> None:
        stopped = perf_counter()
        self.seconds.append(round(stopped - self.begin, 2))
        self.steps.append(step)
        self.scores.append(self.score())
        self.begin += perf_counter() - stopped


def race(data: str, contender: Contender) -> Row:
    """Train one contender from raw text."""
    view = changed({"data": data, "model": MODEL, "adapter": contender.adapter}, TrainView, place=(contender.name,))
    texts = datasets.load(view.dataset, data).splits
    begin = perf_counter()
    set_seed(view.seed)
    tokenizer = base_models.load_tokenizer(view.base_model)
    splits = {
        "train": _tokens(texts["train"], TRAIN.get(data, FEWER), tokenizer),
        "test": _tokens(texts["test"], TEST, tokenizer),
    }
    base = base_models.load_base_model(view.base_model, view.dataset)
    model = _adapted(base, view, splits["train"], tokenizer)
    collate = tokens.collator(tokenizer)

    def score() -> float:
        outputs = inference.logits(model, splits["test"], collate, 128, lambda done: None)
        model.train()
        predicted = inference.predicted(outputs.numpy(), view.dataset)
        return scores.score(["accuracy"], predicted, np.asarray(splits["test"]["label"]))["accuracy"]

    every = max(1, EPOCHS * steps_an_epoch(view, splits["train"]) // LOOKS)
    watch = StopWatch(begin, every, score)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(
            view,
            model,
            splits,
            collate,
            Path(folder),
            [watch],
            num_train_epochs=EPOCHS,
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
        )
        trainer.train()
    count = adapters.count_parameters(model, view.base_model)["adapter_trained"]
    return Row(data, contender.name, count, tuple(watch.seconds), tuple(watch.steps), tuple(watch.scores))


def _adapted(base: PreTrainedModel, view: TrainView, train: Dataset, tokenizer: PreTrainedTokenizerBase) -> PeftModel:
    """Return the model with an adapter initialized as in factorize-init, from training examples if it needs any."""
    section, gradients = view.section, []
    if isinstance(section, LsrParams) and section.reads_examples:
        names = adapters.target_names(base, section, view.base_model, view.seed)
        batches = tokens.sample(train, tokenizer, section.examples, view.seed, BATCH[section.init])
        gradients.append(
            adapters.gradients(base, names, batches, view.base_model, section.init, section.head_steps, view.seed)
        )
    model = adapters.add_adapter(base, section, view.base_model, view.seed, gradients)
    if isinstance(section, LsrParams):
        for _ in adapters.start(model, section, gradients):
            pass
    return model


def _tokens(texts: Dataset, count: int, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Return the first examples, which are a random sample, because splits are ordered by a hash."""
    table, _ = tokenize(texts.select(range(min(count, len(texts)))), tokenizer, MAX_LENGTH)
    return Dataset(table.select([name for name in table.column_names if name in tokens.INPUTS]))
