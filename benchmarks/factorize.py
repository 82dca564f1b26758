"""The cost of frames from pretrained weights: `init: principal` with shared frames, its report, and torch's SVD beside.

The queries and values of a base model and of a large one. Results are in benchmarks/results/factorize.json.
"""

import os
from collections.abc import Iterator, Sequence
from itertools import product
from time import perf_counter, process_time
from typing import NamedTuple

import torch
from peft import get_peft_model
from torch import nn

from benchmarks import figures
from lsr import LsrConfig
from lsr.tuner.start import initialize_factors
from lsr.tuner.start_report import report_start
from pipeline.core import console
from pipeline.core.command_line import Parser
from pipeline.core.errors import exit_on_error

RESULTS = figures.FOLDER / "factorize.json"
SIZES = ((12, 768), (24, 1024))  # layers of a model and their width
RANKS = (3, 12)


class Row(NamedTuple):
    """A model's weights. Seconds are those of the processor, summed over threads, unless said otherwise."""

    layers: int
    width: int
    rank: int
    start_seconds: float
    report_seconds: float
    elapsed_seconds: float  # of both, on the clock
    svd_seconds: float  # of torch.linalg.svd of the same weights in float64
    ratio: float  # of start and report to it


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all sizes and ranks.

    Raises:
        SystemExit: with code 2 after a mistake on the command line, 130 after Ctrl-C.
    """
    parser = Parser("python -m benchmarks.factorize", __doc__)
    figures.add_threads(parser, default=os.cpu_count() or 1)
    threads = parser.parse_args(arguments).threads
    with exit_on_error("stopped; nothing was written"):
        figures.use_threads(threads)
        figures.publish(RESULTS, "principal", threads, run())


def run() -> Iterator[Row]:
    """Yield a row for each size and rank."""
    cases = list(product(SIZES, RANKS))
    for (layers, width), rank in console.track(cases, "factorize", len(cases), "cases"):
        yield measure(layers, width, rank)


def measure(layers: int, width: int, rank: int) -> Row:
    """Return the seconds of a start with its report, and of a full SVD of each weight."""
    base = weights(layers, width)
    exact = [parameter.detach().double() for parameter in base.parameters()]
    config = LsrConfig(rank_shape=(rank,), share="layers", train="core", target_modules=["query", "value"], seed=0)
    model = get_peft_model(base, config)
    started_at, begin = perf_counter(), process_time()
    started = list(initialize_factors(model, init_weights="principal"))
    between = process_time()
    for one in started:
        report_start(one, [], seed=0)
    end, elapsed = process_time(), perf_counter() - started_at
    for weight in exact:
        torch.linalg.svd(weight)
    svd = process_time() - end
    return Row(layers, width, rank, between - begin, end - between, elapsed, svd, (end - begin) / svd)


def weights(layers: int, width: int) -> nn.Module:
    """Return layers with random queries and values of decaying spectra, which have no directions in common."""
    torch.manual_seed(0)
    names = ("query", "value")
    model = nn.ModuleList(nn.ModuleDict({n: nn.Linear(width, width, bias=False) for n in names}) for _ in range(layers))
    for parameter in model.parameters():
        parameter.data = torch.randn(width, width) / (1 + torch.randperm(width)).sqrt()
    return model


if __name__ == "__main__":
    main()
