"""Benchmark whole training steps of the same LoRA by PEFT and by LSR: same initialization, texts and losses."""

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping
from itertools import product, starmap
from pathlib import Path
from typing import NamedTuple

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import set_seed

from benchmarks.speed.figures import Row, Times, dtypes, ratio, step, take_turns
from lsr import from_lora
from pipeline import params, tasks
from pipeline.core import console
from pipeline.core.errors import UserError
from pipeline.data import base_models, datasets, tokens
from pipeline.methods import planning
from pipeline.params.sources import ModelEntry
from pipeline.tasks import encoding

DATA = "movie-reviews"
MAX_LENGTH = 128
BATCHES = {"minilm": 32, "mpnet-base": 16}  # examples per step, by row of pipeline/models.yaml
RANKS = (8, 16)
ALPHA = 16  # the same as in params.yaml
ALL_LINEAR = "all linear"
ROUNDS = 6
PEFT = "PEFT"
LSR = "LSR"


class Case(NamedTuple):
    """A model, its adapted layers, the precision of products (train.precision), and LoRA's rank."""

    model: str
    targets: str
    dtype: str
    rank: int


def run() -> Iterator[Row]:
    """Yield a row per case that is possible here, and print one line about the cases left out.

    The ratio is PEFT's time over LSR's.
    """
    models = filter(_is_installed, BATCHES)
    cases = list(starmap(Case, product(models, ("q, v", ALL_LINEAR), dtypes(), RANKS)))
    for case in console.track(cases, "lora", "cases"):
        times, losses = train(case, ROUNDS)
        differences = [abs(peft - lsr) for peft, lsr in zip(losses[PEFT], losses[LSR], strict=True)]
        yield {
            **case._asdict(),
            "speed_to_peft": ratio(times[PEFT], times[LSR]),
            "largest_difference": max(differences),
        }


def _is_installed(model: str) -> bool:
    try:
        base_models.source(params.load_entry("model", model))
    except UserError as error:
        console.warn(f"{model} is left out: {error}")
        return False
    return True


def train(case: Case, rounds: int) -> tuple[Times, dict[str, list[float]]]:
    """Take turns in training steps of PEFT and LSR, and return their seconds and losses."""
    row = params.load_entry("model", case.model)
    batches = first_batches(row, BATCHES[case.model], rounds + 1)
    losses: dict[str, list[float]] = {PEFT: [], LSR: []}

    def call(name: str, model: nn.Module) -> Callable[[], None]:
        run_step = step(model, case.dtype)
        left = enumerate(batches)

        def take() -> None:
            number, batch = next(left)
            torch.manual_seed(number)  # the same dropout for both
            losses[name].append(run_step(**batch))

        return take

    calls = {name: call(name, model) for name, model in zip(losses, _models(case, row), strict=True)}
    return take_turns(calls, rounds), losses


def _models(case: Case, row: ModelEntry) -> tuple[nn.Module, nn.Module]:
    """Return a model with a LoRA, and another one with the LSR adapter imported from it."""
    set_seed(0)
    base = base_models.load_base_model(row, tasks.of(params.load_entry("data", DATA)))
    inside = f"{base.base_model_prefix}."  # selects the encoder, not the head
    linear = []
    for name, module in base.named_modules():
        if isinstance(module, nn.Linear) and name.startswith(inside):
            linear.append(name)
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=case.rank,
        lora_alpha=ALPHA,
        target_modules=linear if case.targets == ALL_LINEAR else list(row.target_modules or ()),
        modules_to_save=planning.head_of(row, base),
    )
    other = copy.deepcopy(base)
    lora = get_peft_model(base, config)
    with tempfile.TemporaryDirectory() as folder:
        lora.save_pretrained(folder, save_embedding_layers=False)
        from_lora(folder, Path(folder, "lsr"))
        lsr = PeftModel.from_pretrained(other, str(Path(folder, "lsr")), is_trainable=True)
    return lora.train(), lsr.train()


def first_batches(row: ModelEntry, examples: int, count: int) -> list[Mapping[str, Tensor]]:
    """Return the first texts of the train split in batches."""
    tokenizer = base_models.load_tokenizer(row)
    data = params.load_entry("data", DATA)
    texts = datasets.load(data, DATA).splits["train"].batches(examples * count)
    table, _ = next(encoding.tokenize(texts, tokenizer, MAX_LENGTH))
    collate = tasks.of(data).head.collator(tokenizer)
    return list(tokens.sample(Dataset(table), collate, len(table), seed=0, size=examples))
