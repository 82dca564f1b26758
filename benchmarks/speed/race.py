"""Time from raw text to a target score: this pipeline, and PEFT's LoRA as in many examples of the Trainer."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from peft import PeftModel
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from benchmarks.processes import in_fresh_process
from pipeline import console
from pipeline.data import datasets, tokens
from pipeline.data.encoding import tokenize
from pipeline.evaluation import inference, scores
from pipeline.methods import adapters, base_models
from pipeline.methods.pooling import BATCH
from pipeline.params import LsrParams, TrainView
from pipeline.params.changed import changed
from pipeline.training.run import steps_an_epoch, trainer_of

DATA, MODEL, MAX_LENGTH, TARGET = "movie-reviews", "minilm", 128, 0.80
EPOCHS = 4  # at most
LOOKS = 40  # evaluations on the test split, with the clock stopped


class Contender(NamedTuple):
    """One way to train: an adapter, and whether texts are padded to a fixed length, as in many examples of Trainer."""

    name: str
    adapter: str
    is_padded: bool


CONTENDERS = (
    Contender("this pipeline, LSR", "lsr", is_padded=False),
    Contender("this pipeline, LoRA r=8", "lora", is_padded=False),
    Contender("padded to 128, LoRA r=8", "lora", is_padded=True),
)


class Row(NamedTuple):
    """The result of a contender."""

    name: str
    trained: int  # parameters of the adapter
    seconds: float | None  # to the target score; None if it was not reached
    steps: int
    score: float  # on the test split, when it stopped


def run(threads: int, epochs: int = EPOCHS) -> Iterator[Row]:
    """Yield a row for each contender, run in its own process."""
    for contender in console.track(CONTENDERS, "race", len(CONTENDERS), "contenders"):
        yield in_fresh_process(threads, race, contender, epochs)


class StopWatch(TrainerCallback):
    """Evaluates on the test split regularly, with the clock stopped; ends training when the target is reached."""

    def __init__(self, begin: float, every: int, score: Any) -> None:
        self.begin, self.every, self.score = begin, every, score
        self.found, self.seconds, self.is_done = 0.0, 0.0, False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Evaluate if it is time to."""
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            stopped = perf_counter()
            self.seconds = stopped - self.begin
            self.found = self.score()
            self.is_done = control.should_training_stop = self.found >= TARGET
            self.begin += perf_counter() - stopped


def race(contender: Contender, epochs: int) -> Row:
    """Train one contender until it reaches the target score on the test split."""
    view = changed({"data": DATA, "model": MODEL, "adapter": contender.adapter}, TrainView, place=(contender.name,))
    texts = datasets.load(view.dataset, DATA).splits
    begin = perf_counter()
    set_seed(view.seed)
    splits = _tokens(view, texts)
    tokenizer = base_models.load_tokenizer(view.base_model)
    base = base_models.load_base_model(view.base_model, view.dataset)
    model = _adapted(base, view, splits["train"], tokenizer)
    collate = tokens.collator(tokenizer)
    usual = DataCollatorWithPadding(tokenizer, padding="max_length", max_length=MAX_LENGTH)

    def score() -> float:
        outputs = inference.logits(model, splits["test"], collate, 128, lambda done: None)
        model.train()
        predicted = inference.predicted(outputs.numpy(), view.dataset)
        return scores.score(["accuracy"], predicted, np.asarray(splits["test"]["label"]))["accuracy"]

    watch = StopWatch(begin, max(1, epochs * steps_an_epoch(view, splits["train"]) // LOOKS), score)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(
            view,
            model,
            splits,
            usual if contender.is_padded else collate,
            Path(folder),
            [watch],
            num_train_epochs=epochs,
            eval_strategy="no",
            save_strategy="no",
            load_best_model_at_end=False,
            **({"train_sampling_strategy": "random"} if contender.is_padded else {}),
        )
        trainer.train()
    count = adapters.count_parameters(model, view.base_model)["adapter_trained"]
    return Row(contender.name, count, watch.seconds if watch.is_done else None, trainer.state.global_step, watch.found)


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


def _tokens(view: TrainView, texts: dict[str, Any]) -> dict[str, Dataset]:
    tokenizer = base_models.load_tokenizer(view.base_model)
    found = {}
    for split in ("train", "test"):
        table, _ = tokenize(texts[split], tokenizer, MAX_LENGTH)
        found[split] = Dataset(table.select([name for name in table.column_names if name in tokens.INPUTS]))
    return found
