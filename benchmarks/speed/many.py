"""Benchmark many adapters of one model: a bank vs. PEFT's loop over adapters, a merged adapter, and `lsr serve`."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, BertConfig

from benchmarks.speed.figures import Row, ratio, take_turns
from lsr import AdapterBank, LsrConfig
from lsr.loading.contents import read_contents
from pipeline import params
from pipeline.core import console
from pipeline.data import base_models

ROWS = 64
ROUNDS = 4
# The shapes of MiniLM, with two labels; random weights take the same time.
SHAPE = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
LENGTHS = (32, 4)  # tokens per row: with fewer, adapters take a larger share of the time
COUNTS = (8, 64, 1024)
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
PEER = "LoRA r=8, PEFT's loop"
MERGED = "one adapter, merged"
ALONE = "one adapter, not merged"
TENANTS = 256
CLIENTS = 128
TEXTS = 2048
TEXT = "The hotel was clean and quiet, the staff friendly, but the breakfast was cold and the coffee worse. "
REQUEST = "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{}"


def run() -> Iterator[Row]:
    """Yield a row per number of adapters and way to serve them.

    Row i of a batch goes through adapter i modulo their number. Tokens are per row, seconds the median per batch.
    """
    for count in console.track(COUNTS, "many", "numbers of adapters"):
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
        for length in LENGTHS:
            generator = torch.Generator().manual_seed(0)
            ids = torch.randint(5, SHAPE.vocab_size, (ROWS, length), generator=generator)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            calls = {name: partial(model, **inputs) for name, model in models.items()}
            with torch.inference_mode():
                times = take_turns(calls, ROUNDS)
            for method, seconds in times.items():
                yield {"tokens": length, "method": method, "adapters": count, "seconds": median(seconds)}


def bank(form: str, count: int) -> AdapterBank:
    """Return a bank of this many adapters of one form."""
    with TemporaryDirectory() as folder:
        get_peft_model(base(), FORMS[form](**COMMON)).save_pretrained(folder, save_embedding_layers=False)
        reading = read_contents(folder)
    filled = AdapterBank(base())
    for number in range(count):  # all with the same values, each in its own slot
        filled.add(str(number), reading)
    return filled


def base(labels: int = 2) -> Any:
    """Return the base model, the same each time."""
    torch.manual_seed(0)
    config = deepcopy(SHAPE)
    config.num_labels = labels
    return AutoModelForSequenceClassification.from_config(config).eval()


def over_http() -> Iterator[Row]:
    """Yield a row of `lsr serve` under many concurrent clients, one text each, compared with its bank alone.

    It has texts per second of both, the median of their ratios within rounds, and seconds per request.
    """
    tokenizer = base_models.load_tokenizer(params.load_entry("model", "minilm"))
    filled = bank("LoRA r=8", TENANTS)

    def alone() -> None:
        for first in range(0, TEXTS, ROWS):
            names = [str(number % TENANTS) for number in range(first, min(first + ROWS, TEXTS))]
            inputs = tokenizer([TEXT] * len(names), return_tensors="pt")
            with torch.no_grad():
                logits = filled(**inputs, adapter_names=names).logits
            filled.answers(logits, names)

    seconds = list[float]()
    with TemporaryDirectory() as folder:
        filled.save(f"{folder}/bank")
        base().save_pretrained(f"{folder}/base")
        tokenizer.save_pretrained(f"{folder}/base")
        with serve(f"{folder}/bank", "--base", f"{folder}/base") as server:
            times = take_turns({"bank": alone, "server": lambda: asyncio.run(ask(server.port, seconds))}, ROUNDS)
    percentiles = quantiles(seconds[-ROUNDS * TEXTS :], n=100)
    yield {
        "tenants": TENANTS,
        "clients": CLIENTS,
        "texts": TEXTS,
        **{f"{name}_per_second": TEXTS / median(rounds) for name, rounds in times.items()},
        "share": ratio(times["bank"], times["server"]),
        "median_seconds": percentiles[49],
        "p99_seconds": percentiles[98],
    }


class Server(NamedTuple):
    """A process of `lsr serve`."""

    port: int
    start_seconds: float  # until it answers
    process: int  # its number

    @property
    def megabytes(self) -> float:
        """The memory that the process has now."""
        status = Path(f"/proc/{self.process}/status").read_text(encoding="utf-8")
        (kilobytes,) = re.findall(r"VmRSS:\s+(\d+) kB", status)
        return int(kilobytes) / 1024


@contextmanager
def serve(*arguments: str) -> Iterator[Server]:
    """Yield `lsr serve` with a bank or graphs and options; it has as many threads as torch has here."""
    command = [sys.executable, "-m", "lsr_server", "serve", *arguments, "--port", "0"]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(torch.get_num_threads()))
    begin = perf_counter()
    with subprocess.Popen(command, env=os.environ | threads, stderr=subprocess.PIPE, text=True) as server:  # noqa: S603
        assert server.stderr is not None
        try:
            port = int(re.findall(r":(\d+): ", server.stderr.readline())[0])
            yield Server(port, perf_counter() - begin, server.pid)
        finally:
            server.terminate()


async def ask(port: int, seconds: list[float]) -> None:
    """Ask for all texts, and append the seconds of each request; a client library would take much of the cores."""
    numbers = iter(range(TEXTS))  # each is taken by the client that is free

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in numbers:
            body = f'{{"adapter": "{number % TENANTS}", "texts": ["{TEXT}"]}}'
            begin = perf_counter()
            writer.write(REQUEST.format(len(body), body).encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            await reader.readexactly(int(re.findall(rb"content-length: (\d+)", head)[0]))
            seconds.append(perf_counter() - begin)

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
