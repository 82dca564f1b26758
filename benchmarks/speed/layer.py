"""Forward and backward through one linear layer, compared with the frozen layer."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.processes import process
from benchmarks.speed.methods import FROZEN, METHODS, adapted, trained
from benchmarks.speed.timing import Times, ratio, take_turns
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
    both_seconds: float  # forward and backward
    both_ratio: float  # to the frozen layer


def run(cases: tuple[Case, ...], threads: int, rounds: int = ROUNDS) -> Iterator[Row]:
    """Yield a row for each case and method."""
    with process(threads, __name__) as worker:
        for case in console.track(cases, "layer", len(cases), "cases"):
            affordable = max(FEWEST, int(WORK / (case.width**2 * case.tokens)))
            both = worker.submit(times, case, min(rounds, affordable)).result()
            for method in METHODS:
                yield Row(*case, method, median(both[method]), ratio(both[method], both[FROZEN]))


def times(case: Case, rounds: int) -> Times:
    """Return the seconds of forward and backward passes by method."""
    layers, x, gradient = _operands(case, METHODS)
    x.requires_grad_()
    return take_turns({name: _step(layer, x, gradient) for name, layer in layers.items()}, rounds, twice=True)


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
