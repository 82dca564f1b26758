"""Many adapters of one model in one batch: a bank, compared with PEFT's loop over adapters and one merged adapter."""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForSequenceClassification, BertConfig

from benchmarks.speed.figures import Row, take_turns
from lsr import AdapterBank, LsrConfig
from lsr.loading.contents import read_contents
from pipeline.core import console

ROWS, ROUNDS = 64, 4
# The shapes of MiniLM, with two labels; random weights take the same time.
SHAPE = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
LENGTHS = (32, 4)  # tokens per row: with fewer, adapters take a larger share of the time
COUNTS = (8, 64, 1024, 4096)
COMMON: dict[str, Any] = {
    "task_type": "SEQ_CLS",
    "target_modules": ["query", "value"],
    "modules_to_save": ["classifier"],
}
SMALLEST = "LSR, 192 directions"
FORMS: dict[str, Callable[..., PeftConfig]] = {  # twelve layers with 16 directions each: 192 parameters per adapter
    SMALLEST: partial(LsrConfig, rank_shape=(16,), train="core", core="diagonal", share="layers", init_weights=False),
    "LSR, cores 12 x 12": partial(LsrConfig, rank_shape=(12,), train="core", share="layers", init_weights=False),
    "LoRA r=1": partial(LoraConfig, r=1, init_lora_weights=False),
    "LoRA r=8": partial(LoraConfig, r=8, init_lora_weights=False),
}
PEER, MERGED, ALONE = "LoRA r=8, PEFT's loop", "one adapter, merged", "one adapter, not merged"


def run() -> Iterator[Row]:
    """Yield a row for each number of adapters and way to serve them.

    Row i of a batch goes through adapter i modulo their number. Tokens are per row, seconds the median per batch.
    """
    for count in console.track(COUNTS, "many", "numbers of adapters"):
        yield from serve(count, ROUNDS)


def serve(count: int, rounds: int) -> list[Row]:
    """Time batches for each way to serve this number of adapters."""
    names = [str(row % count) for row in range(ROWS)]
    # PEFT loops over the adapters that a batch names, so only these are loaded: more would not change the time.
    peer = get_peft_model(base(), FORMS["LoRA r=8"](**COMMON), adapter_name="0")
    for number in range(1, min(count, ROWS)):
        peer.add_adapter(str(number), FORMS["LoRA r=8"](**COMMON))
    models: dict[str, Any] = {
        MERGED: base(),
        ALONE: get_peft_model(base(), FORMS[SMALLEST](**COMMON)).eval(),
        **{form: partial(bank(form, count), adapter_names=names) for form in FORMS},
        PEER: partial(peer.eval(), adapter_names=names),
    }
    rows: list[Row] = []
    for length in LENGTHS:
        inputs = batch(length)
        with torch.inference_mode():
            times = take_turns({name: partial(model, **inputs) for name, model in models.items()}, rounds)
        for method, seconds in times.items():
            rows.append({"tokens": length, "method": method, "adapters": count, "seconds": median(seconds)})
    return rows


def bank(form: str, count: int) -> AdapterBank:
    """Return a bank of so many adapters of one form."""
    with tempfile.TemporaryDirectory() as folder:
        get_peft_model(base(), FORMS[form](**COMMON)).save_pretrained(folder, save_embedding_layers=False)
        reading = read_contents(folder)
    filled = AdapterBank(base())
    for number in range(count):  # with equal values, each in its own slot
        filled.add(str(number), reading)
    return filled


def base() -> Any:
    """Return the base model, the same each time."""
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(SHAPE).eval()


def batch(length: int) -> dict[str, Tensor]:
    """Return rows of so many tokens, drawn once."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, SHAPE.vocab_size, (ROWS, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
