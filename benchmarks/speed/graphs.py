"""Graphs in ONNX compared with torch: batches of a classifier, and `lsr serve` with tenants that share an adapter."""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from peft import get_peft_model

from benchmarks.speed import many
from benchmarks.speed.figures import Row, ratio, take_turns
from lsr.convert.graph import export_graphs
from lsr.serve.graph import export_bank_graphs
from lsr.serve.joining import join_banks
from lsr_onnx.folder import FLOAT32, GRAPHS, INT8
from lsr_onnx.graph import Graph
from pipeline import params
from pipeline.core import console
from pipeline.data import base_models

BATCHES = (1, 8, 32)
THREADS = (1, 2)
ROUNDS = 30
SERVER_ROUNDS = 4
TORCH = "torch, merged"
FLOAT = "onnx, float32"
QUANTIZED = "onnx, 8 bits"
ALONE = "onnx, 8 bits, text by text"
LABELS = ("no", "yes")
# Goals for `to_torch`, on one thread: at most this share of torch's time, by method and texts per batch.
MOST = {
    (FLOAT, 1): 0.6,
    (FLOAT, 8): 1.0,
    (FLOAT, 32): 1.0,
    (QUANTIZED, 1): 0.3,
    (QUANTIZED, 8): 0.45,
    (QUANTIZED, 32): 0.5,
}
LEAST = {"onnx-int8": 1.8}  # goal: at least this many times torch's texts per second, by runtime


def run() -> Iterator[Row]:
    """Yield a row for each number of threads, batch size and runtime: torch, and the graphs in float32 and 8 bits.

    All texts are many.TEXT, of 23 tokens. `to_torch` is the median ratio of the times within a round.
    """
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = save_adapter(folder, {"labels": LABELS, "max_length": 128})
        export_graphs(folder / "adapter", folder / "graphs", base=str(folder / "base"))
        merged = model.merge_and_unload()
        tokens = _load_tokenizer()([many.TEXT], return_tensors="np")
        before = torch.get_num_threads()
        for threads in console.track(THREADS, "onnx", "numbers of threads"):
            torch.set_num_threads(threads)
            for batch in BATCHES:
                inputs = {name: np.repeat(values, batch, axis=0) for name, values in tokens.items()}
                yield from _time_batch(merged, folder / "graphs", inputs, threads)
        torch.set_num_threads(before)


def _time_batch(model: Any, folder: Path, inputs: Mapping[str, np.ndarray], threads: int) -> Iterator[Row]:
    """Yield a row for each way to answer a batch."""
    tensors = {name: torch.from_numpy(values) for name, values in inputs.items()}
    texts = len(next(iter(inputs.values())))
    single = {name: values[:1] for name, values in inputs.items()}
    exact = Graph(folder / FLOAT32, threads=threads)
    quantized = Graph(folder / INT8, threads=threads)

    def answer_alone() -> None:
        for _ in range(texts):
            quantized.run(single)

    calls: dict[str, Callable[[], object]] = {
        TORCH: partial(model, **tensors),
        FLOAT: partial(exact.run, inputs),
        QUANTIZED: partial(quantized.run, inputs),
        ALONE: answer_alone,
    }
    with torch.inference_mode():
        times = take_turns(calls, ROUNDS)
    for method, seconds in times.items():
        yield {
            "threads": threads,
            "texts": texts,
            "method": method,
            "milliseconds": 1000 * median(seconds),
            "to_torch": ratio(seconds, times[TORCH]),
            "goal": MOST.get((method, texts)) if threads == 1 else None,
        }


def over_http() -> Iterator[Row]:
    """Yield a row of `lsr serve` for each runtime: tenants with two labels each, and many concurrent clients.

    `start_seconds` is the time until it answers, `megabytes` its memory after all texts.
    `to_torch` is texts per second relative to torch, the median of the ratios within rounds.
    """
    with TemporaryDirectory() as temporary, ExitStack() as servers:
        folder = Path(temporary)
        tenants = {str(number): LABELS for number in range(many.TENANTS)}
        save_adapter(folder, {"tenants": tenants, "max_length": 128})
        base = str(folder / "base")
        join_banks([folder / "adapter"], base).save(folder / "bank")
        export_bank_graphs(folder / "bank", folder / "graphs", base=base)
        options = {"torch": (str(folder / "bank"), "--base", base)}
        for runtime in GRAPHS:
            options[runtime] = (str(folder / "graphs"), "--runtime", runtime)
        started = {}
        for runtime, words in options.items():
            started[runtime] = servers.enter_context(many.serve(*words))
        calls = {runtime: partial(_ask, server.port) for runtime, server in started.items()}
        times = take_turns(calls, SERVER_ROUNDS)
        megabytes = {runtime: server.megabytes for runtime, server in started.items()}
    for runtime, seconds in times.items():
        yield {
            "tenants": many.TENANTS,
            "clients": many.CLIENTS,
            "runtime": runtime,
            "texts_per_second": many.TEXTS / median(seconds),
            "to_torch": ratio(times["torch"], seconds),
            "goal": LEAST.get(runtime),
            "start_seconds": started[runtime].start_seconds,
            "megabytes": megabytes[runtime],
        }


def _ask(port: int) -> None:
    asyncio.run(many.ask(port, []))


def save_adapter(folder: Path, note: Mapping[str, Any]) -> Any:
    """Save a base model of many.SHAPE with its tokenizer, and a LoRA of it with this task info; return the LoRA."""
    outputs = len(LABELS) * len(note.get("tenants", LABELS[:1]))
    base = many.base(outputs)
    base.save_pretrained(folder / "base")
    _load_tokenizer().save_pretrained(folder / "base")
    model = get_peft_model(base, many.FORMS["LoRA r=8"](**many.COMMON)).eval()
    model.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
    (folder / "adapter/task.json").write_text(json.dumps(note), encoding="utf-8")
    return model


def _load_tokenizer() -> Any:
    return base_models.load_tokenizer(params.load_entry("model", "minilm"))
