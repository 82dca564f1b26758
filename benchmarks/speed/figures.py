"""Measure the times of calls that take turns, such as training steps."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from pipeline.core import console
from pipeline.training.processes import has_fast_bf16

Times = dict[str, list[float]]  # seconds, one per round, by method
Row = dict[str, Any]  # figures by name
RATE = 0.002  # learning rate; the same in params.yaml


def take_turns(calls: Mapping[str, Callable[[], object]], rounds: int) -> Times:
    """Return the seconds of each call in each round, after one round that is not timed.

    A slow round slows down all its calls, so ratios are stable.
    """
    times: Times = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            begin = perf_counter()
            call()
            if number:
                times[name].append(perf_counter() - begin)
    return times


def ratio(other: Sequence[float], seconds: Sequence[float]) -> float:
    """Return how many times as fast as another a call is: the median of the ratios within rounds."""
    return median(theirs / ours for theirs, ours in zip(other, seconds, strict=True))


def dtypes() -> list[str]:
    """Return the dtypes to measure; print a line if bf16 is left out because it would take hours."""
    if has_fast_bf16():
        return ["float32", "bfloat16"]
    console.warn("bf16 is left out: torch has no fast products in bf16 on this processor")
    return ["float32"]


def step(model: Any, dtype: str) -> Callable[..., float]:
    """Return a call that takes a training step and returns its loss; for a frozen model, forward and backward only.

    With bfloat16, products use it by autocast, as in the Trainer.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, foreach=True) if trained else None

    def run_step(**batch: Tensor) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(**batch).loss
        loss.backward()
        if optimizer:
            optimizer.step()
            optimizer.zero_grad()
        return float(loss.detach())

    return run_step
