"""Benchmark a language model in training and generation: tokens per second, and memory of a step.

The model has SmolLM2-135M's shapes and random weights, which take the same time, so nothing is downloaded.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.speed.figures import Row, dtypes, ratio, step, take_turns
from lsr import LsrConfig
from pipeline.core import console

SHAPE: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
ROUNDS = 5
EXAMPLES = 16  # examples per batch
LENGTH = 48  # tokens of an example, or of a prompt
NEW = 24  # tokens that are written after a prompt
USUAL: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}
NONE = "no adapter"
LORA = "LoRA r = 8"
MERGED = "LSR [8], merged"
FORMS: dict[str, Callable[..., PeftConfig]] = {
    LORA: partial(LoraConfig, r=8, lora_alpha=16, **USUAL),
    "LSR [8]": partial(LsrConfig, rank_shape=(8,), separation_rank=None, **USUAL),
    "LSR [8], shared bases": partial(LsrConfig, rank_shape=(8,), share="layers", train="all", **USUAL),
}
TRAIN = "train"
WRITE = "write"


def run() -> Iterator[Row]:
    """Yield a row per method for training steps in fp32 and in bf16 (by autocast), and for generation in fp32.

    Tokens per second are from the median of rounds; the ratios, to LoRA and to the model without an adapter, are
    medians of ratios within rounds. A step without an adapter is forward, and backward to the inputs: the lower bound
    for adapters. The peak memory is that of a process of its own.
    """
    cases = [*((TRAIN, dtype) for dtype in dtypes()), (WRITE, "float32")]
    for what, dtype in console.track(cases, "generate", "cases"):
        methods = [NONE, *FORMS, *([MERGED] if what == WRITE else [])]
        times = take_turns({method: call(what, dtype, method, SHAPE) for method in methods}, ROUNDS)
        tokens = EXAMPLES * (LENGTH if what == TRAIN else NEW)
        for method, seconds in times.items():
            with ProcessPoolExecutor(1, get_context("spawn")) as alone:
                peak = alone.submit(peak_bytes, what, dtype, method, SHAPE).result()
            yield {
                "what": what,
                "dtype": dtype,
                "method": method,
                "tokens_per_second": tokens / median(seconds),
                **{f"to {other}": ratio(times[other], seconds) for other in (LORA, NONE)},
                "peak": peak,
            }


def peak_bytes(what: str, dtype: str, method: str, shape: Mapping[str, Any]) -> int:
    """Return the peak memory of this process after two steps, or after generation."""
    step = call(what, dtype, method, shape)
    step()
    step()
    # Not of getrusage, which counts what the parent had when this process began.
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024


def call(what: str, dtype: str, method: str, shape: Mapping[str, Any]) -> Callable[[], object]:
    """Return a call that takes a training step with a method, or generates, on a model of its own."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(LlamaConfig(**shape)).requires_grad_(False)
    ids = torch.randint(5, model.config.vocab_size, (EXAMPLES, LENGTH))
    if method != NONE:
        more = {"init_weights" if "LSR" in method else "init_lora_weights": False}  # random: nothing is zero
        model = get_peft_model(model, FORMS[method.removesuffix(", merged")](**more))
    if method == MERGED:
        model = model.merge_and_unload()
    if what == TRAIN:
        run_step = step(model.train(), dtype)
        embedding = model.get_input_embeddings()
        return lambda: run_step(inputs_embeds=embedding(ids).requires_grad_(method == NONE), labels=ids)
    return partial(
        model.eval().generate,
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
    )
