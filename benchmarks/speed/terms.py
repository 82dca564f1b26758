"""The time that the Kronecker form takes: with more terms, and with factors applied one by one or as a matrix."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from statistics import median
from typing import NamedTuple, cast

import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.processes import process
from benchmarks.speed.timing import overhead, take_turns
from lsr import LsrConfig
from lsr.algebra.separable import kron_sum, kron_sum_product
from lsr.algebra.shapes import split_width
from lsr.tuner.functional import is_cheaper_by_factors
from lsr.tuner.linear import adapted_layers
from pipeline.core import console

WIDTH, TOKENS = 768, 2048  # for timing more terms
RANK_SHAPE = (4, 4)  # 64 terms of rank 4 would be more than a layer of this width can use
SEPARATION_RANKS = (1, 4, 16, 64)
FROZEN = "frozen"
ROUNDS = 11


class Growth(NamedTuple):
    """An adapter with `separation_rank` terms on one layer, forward and backward."""

    separation_rank: int
    seconds: float  # median
    overhead: float  # over the frozen layer, as a share of what one term adds


class Side(NamedTuple):
    """A x of one side, with A built for all tokens or applied factor by factor; and the frozen layer's W x."""

    width: int
    rank_shape: tuple[int, int]
    separation_rank: int
    tokens: int
    layer_seconds: float  # median, W x
    matrix_seconds: float
    factors_seconds: float
    gain: float  # share of the layer's forward pass that the factors save
    is_chosen: bool  # whether the layer applies the factors one by one


def run(threads: int, rounds: int = ROUNDS) -> Iterator[Growth | Side]:
    """Yield the growth with the separation rank, then both ways for several shapes."""
    shapes = list(product((768, 4096), ((2, 2), (4, 4), (8, 8)), (1, 2, 16), (1, 64, 1024)))
    with process(threads, __name__) as worker:
        yield from worker.submit(growth, rounds).result()
        for shape in console.track(shapes, "terms", len(shapes), "cases"):
            yield worker.submit(side, *shape, rounds).result()


def growth(rounds: int) -> list[Growth]:
    """Time a layer with increasing numbers of terms."""
    torch.manual_seed(0)
    layers: dict[str, nn.Module] = {FROZEN: nn.Linear(WIDTH, WIDTH).requires_grad_(False)}
    for count in SEPARATION_RANKS:
        config = LsrConfig(target_modules=["0"], rank_shape=RANK_SHAPE, separation_rank=count)
        model = get_peft_model(nn.Sequential(nn.Linear(WIDTH, WIDTH)), config)
        layers[str(count)] = cast("nn.Module", adapted_layers(model)["0"])
    x, gradient = torch.randn(TOKENS, WIDTH, requires_grad=True), torch.randn(TOKENS, WIDTH)
    times = take_turns({name: _step(layer, x, gradient) for name, layer in layers.items()}, rounds, lambda: None)
    return [
        Growth(count, median(times[str(count)]), overhead(times, str(count), FROZEN, str(SEPARATION_RANKS[0])))
        for count in SEPARATION_RANKS
    ]


def side(width: int, rank_shape: tuple[int, int], count: int, tokens: int, rounds: int) -> Side:
    """Time both ways, without gradients: they matter most for a decoder, which has few tokens at a time."""
    torch.manual_seed(0)
    one, two = (
        torch.randn(count, rank, size) for rank, size in zip(rank_shape, split_width(width, rank_shape), strict=True)
    )
    x, weight = torch.randn(tokens, width), torch.randn(width, width)
    calls: dict[str, Callable[[], object]] = {
        "layer": partial(F.linear, x, weight),
        "matrix": lambda: x @ kron_sum(one, two).T,
        "factors": partial(kron_sum_product, x, one, two),
    }
    with torch.no_grad():
        times = take_turns(calls, rounds, lambda: None)
    saved = [matrix - factors for matrix, factors in zip(times["matrix"], times["factors"], strict=True)]
    of_layer, of_matrix, of_factors = (median(times[name]) for name in ("layer", "matrix", "factors"))
    gain, is_chosen = median(saved) / of_layer, is_cheaper_by_factors(tokens, one, two)
    return Side(width, rank_shape, count, tokens, of_layer, of_matrix, of_factors, gain, is_chosen)


def _step(layer: nn.Module, x: Tensor, gradient: Tensor) -> Callable[[], object]:
    wanted = [x, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]
    return lambda: torch.autograd.grad(layer(x), wanted, gradient)
