"""One linear layer: forward alone, and forward and backward, compared with the frozen layer."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.processes import process
from benchmarks.speed.methods import FROZEN, METHODS, PEER, adapted, trained
from benchmarks.speed.timing import Times, overhead, ratio, take_turns
from pipeline.core import console

DTYPES = ("float32", "bfloat16")
TOKENS = {384: (256, 2048), 768: (256, 2048, 16384), 4096: (64, 256)}
ROUNDS, FEWEST = 15, 3  # of a small layer, and of a large one
WORK = 1.7e10  # multiplications of the frozen layer in all rounds, while that leaves enough rounds


class Case(NamedTuple):
    """A square layer and its input."""

    width: int
    tokens: int
    dtype: str


CASES = tuple(Case(width, count, dtype) for dtype in DTYPES for width, counts in TOKENS.items() for count in counts)


class Row(NamedTuple):
    """A method on a layer. Seconds are medians."""

    width: int
    tokens: int
    dtype: str
    method: str
    forward_seconds: float
    forward_ratio: float  # to the frozen layer
    forward_overhead: float  # over the frozen layer, as a share of LoRA's (r = 8)
    both_seconds: float  # forward and backward
    both_ratio: float
    both_overhead: float


def run(cases: tuple[Case, ...], threads: int, rounds: int = ROUNDS) -> Iterator[Row]:
    """Yield a row for each case and method."""
    with process(threads, __name__) as worker:
        for case in console.track(cases, "layer", len(cases), "cases"):
            affordable = max(FEWEST, int(WORK / (case.width**2 * case.tokens)))
            forward, both = worker.submit(times, case, min(rounds, affordable)).result()
            for method in METHODS:
                yield _row(case, method, forward, both)


def times(case: Case, rounds: int) -> tuple[Times, Times]:
    """Return the seconds of forward passes, and of forward and backward passes, by method."""
    layers, x, gradient = _operands(case, METHODS)
    with torch.no_grad():
        forward = take_turns({name: partial(layer, x) for name, layer in layers.items()}, rounds, twice=True)
    x.requires_grad_()
    calls = {name: _step(layer, x, gradient) for name, layer in layers.items()}
    return forward, take_turns(calls, rounds, twice=True)


def _operands(case: Case, methods: tuple[str, ...]) -> tuple[dict[str, nn.Module], Tensor, Tensor]:
    dtype = getattr(torch, case.dtype)
    torch.manual_seed(0)
    layers = {}
    for method in methods:
        model = nn.Sequential(OrderedDict(linear=nn.Linear(case.width, case.width, dtype=dtype)))
        layers[method] = next(
            module for name, module in adapted(model, method, ["linear"]).named_modules() if name.endswith("linear")
        )
    x, gradient = (torch.randn(case.tokens, case.width, dtype=dtype) for _ in range(2))
    return layers, x, gradient


def _step(layer: nn.Module, x: Tensor, gradient: Tensor) -> Callable[[], object]:
    wanted = [x, *trained(layer)]
    return lambda: torch.autograd.grad(layer(x), wanted, gradient)


def _row(case: Case, method: str, forward: Times, both: Times) -> Row:
    return Row(
        *case,
        method=method,
        forward_seconds=median(forward[method]),
        forward_ratio=ratio(forward[method], forward[FROZEN]),
        forward_overhead=overhead(forward, method, FROZEN, PEER),
        both_seconds=median(both[method]),
        both_ratio=ratio(both[method], both[FROZEN]),
        both_overhead=overhead(both, method, FROZEN, PEER),
    )
