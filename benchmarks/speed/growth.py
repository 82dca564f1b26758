"""How time and memory grow with whatever may grow, over two decades each."""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
from datasets import Dataset
from peft import get_peft_model
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig

from benchmarks.processes import in_fresh_process, peak_beyond
from benchmarks.speed import many, race
from lsr import LsrConfig
from pipeline.core import console
from pipeline.data.encoding import tokenize
from pipeline.data.tokens import collator
from pipeline.methods import base_models
from pipeline.params import TrainView
from pipeline.params.changed import changed
from pipeline.training.run import trainer_of

WIDTH, TOKENS = 768, 2048  # of a layer, where it is not what grows
NARROW, FEW = 256, 256  # of many layers
ROUNDS = 3
TINY = BertConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40)
TEXT = "a film of some wit and of no small charm"
Call = Callable[[], object]


class Row(NamedTuple):
    """What a size costs."""

    what: str  # what has this size
    size: int
    seconds: float  # median
    peak_bytes: int  # beyond what was there, with what grows itself


def layers(count: int, width: int, tokens: int, rank_shape: tuple[int, ...], terms: int = 1) -> Call:
    """Return a call that goes forward and backward through adapted layers of one width."""
    torch.manual_seed(0)
    base = nn.Sequential(*(nn.Linear(width, width) for _ in range(count)))
    names = [str(place) for place in range(count)]
    config = LsrConfig(target_modules=names, rank_shape=rank_shape, separation_rank=terms, init_weights=False)
    model = get_peft_model(base, config)
    x = torch.randn(tokens, width, requires_grad=True)
    wanted = [x, *(parameter for parameter in model.parameters() if parameter.requires_grad)]
    return lambda: torch.autograd.grad(model(x).sum(), wanted)


def bank(count: int) -> Call:
    """Return a call that takes a batch through a bank with so many adapters, its rows through different ones."""
    found = many.bank(many.SMALLEST, count)
    names = [str(row * count // many.ROWS % count) for row in range(many.ROWS)]
    return torch.inference_mode()(partial(found, **many.batch(many.LENGTHS[0]), adapter_names=names))


def epoch(count: int) -> Call:
    """Return a call that tokenizes so many texts and trains a tiny model on them for an epoch."""
    texts = Dataset.from_dict({"text": [f"{TEXT} {row}" for row in range(count)]})
    view = changed({"data": race.DATA[0], "model": race.MODEL}, TrainView, place=("growth",))
    tokenizer = base_models.load_tokenizer(view.base_model)
    collate = collator(tokenizer)
    small = LsrConfig(target_modules=["query"], separation_rank=1, task_type="SEQ_CLS")

    def run() -> None:
        tokens = tokenize(texts, tokenizer, 64)[0].select(["input_ids"])
        split = Dataset(tokens).add_column("labels", [row % 2 for row in range(count)])
        model = get_peft_model(AutoModelForSequenceClassification.from_config(TINY), small)
        with tempfile.TemporaryDirectory() as folder:
            trainer = trainer_of(
                view,
                model,
                {"train": split},
                collate,
                Path(folder),
                num_train_epochs=1,
                eval_strategy="no",
                save_strategy="no",
                load_best_model_at_end=False,
            )
            trainer.train()

    return run


GROWING: dict[str, tuple[tuple[int, ...], Callable[[int], Call]]] = {
    "separation rank": (
        (1, 4, 16, 64, 128),
        lambda size: layers(1, WIDTH, TOKENS, (8, 8), size),
    ),
    "rank": ((1, 4, 16, 64, 128), lambda size: layers(1, WIDTH, TOKENS, (size,))),
    "layers": ((1, 3, 10, 30, 100), lambda size: layers(size, NARROW, FEW, (4,))),
    "tokens": ((100, 300, 1000, 3000, 10_000), lambda size: layers(1, WIDTH, size, (2, 2))),
    "adapters in a bank": ((16, 64, 256, 1024, 4096), bank),
    "rows of data": ((100, 300, 1000, 3000, 10_000), epoch),
}
CASES = tuple((what, size) for what, (sizes, _) in GROWING.items() for size in sizes)


def run(threads: int, cases: tuple[tuple[str, int], ...] = CASES, rounds: int = ROUNDS) -> Iterator[Row]:
    """Yield a row for each size, each in a process of its own."""
    for what, size in console.track(cases, "growth", len(cases), "sizes"):
        yield in_fresh_process(threads, measure, what, size, rounds)


def measure(what: str, size: int, rounds: int) -> Row:
    """Measure one size: memory over building it and two calls, time over the calls after them."""

    def first() -> Call:
        call = GROWING[what][1](size)
        call()
        return call

    call, peak = peak_beyond(first)
    times = []
    for _ in range(rounds):
        begin = perf_counter()
        call()
        times.append(perf_counter() - begin)
    return Row(what, size, median(times), peak)
