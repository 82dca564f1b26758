"""The cost of a start from the pretrained weight, `principal`, beside torch's decompositions of the same matrices.

Results are in benchmarks/results/factorize.json.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from math import prod
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import figures
from benchmarks.processes import in_fresh_process, peak_beyond, process
from lsr.algebra.shapes import Form, split_width
from lsr.init import INITIALIZATIONS
from lsr.init.initialization import Source, Start
from pipeline.core import console
from pipeline.core.command_line import Parser
from pipeline.core.errors import exit_on_error

RESULTS = figures.FOLDER / "factorize.json"
ROUNDS = {384: 7, 768: 7, 1024: 5, 4096: 3}  # by size; in each round, all calls on a size take turns
PRINCIPAL, SVD, LOWRANK = "principal", "torch.linalg.svd", "torch.svd_lowrank"
TERMS = {(2, 2): 4, (4, 4): 16}  # separation rank, by rank shape
LEADING, BLOCK = 256, 64  # singular values above the noise; rows that are drawn at once
SMALL = 64  # a size whose decomposition loads and sets up libraries


class Case(NamedTuple):
    """A decomposition of a square weight."""

    method: str
    size: int
    rank_shape: tuple[int, int] | None = None  # None: a full SVD

    @property
    def form(self) -> Form:
        """The shapes of the adapter of a square layer."""
        assert self.rank_shape is not None, "only `principal` has a form"
        shape = split_width(self.size, self.rank_shape)
        return Form(self.rank_shape, shape, shape, TERMS[self.rank_shape], self.size, self.size)

    def run(self, weight: Tensor) -> Start | None:
        """Decompose a weight (size, size); return the initial factors, or None for torch's decompositions."""
        if self.method == PRINCIPAL:
            return INITIALIZATIONS[PRINCIPAL].start(Source(self.form, lambda: weight))
        if self.method == SVD:
            torch.linalg.svd(weight)
        else:
            torch.svd_lowrank(weight, q=prod(self.rank_shape or ()), niter=5)
        return None


class Row(NamedTuple):
    """A decomposition of a weight: medians over the rounds. Energies are shares of the weight's, in [0, 1]."""

    method: str
    size: int
    rank: int | None  # None: full
    separation_rank: int | None  # None if nothing is separated
    seconds: float
    to_svd: float  # seconds / those of the full SVD in the same round, so that common slowdowns cancel
    peak_bytes: int  # beyond those of the process with its weight
    captured: float | None
    captured_by_svd: float | None  # by the truncated SVD with as many parameters


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: with code 2 after a mistake on the command line, 130 after Ctrl-C.
    """
    parser = Parser(prog="python -m benchmarks.factorize", description=__doc__.partition("\n")[0])
    figures.add_threads(parser, default=2)
    options = parser.parse_args(arguments)
    with exit_on_error("stopped; the results are unchanged"):
        figures.publish(RESULTS, "starts", options.threads, run(ROUNDS, options.threads))


def run(rounds: Mapping[int, int], threads: int) -> Iterator[Row]:
    """Measure all decompositions of weights of these sizes, and yield a row for each."""
    turns = [case for size, count in rounds.items() for _ in range(count) for case in cases(size)]
    times: dict[Case, list[float]] = {case: [] for case in turns}
    with process(threads, __name__) as worker:
        for case in console.track(turns, "time", len(turns), "calls"):
            times[case].append(worker.submit(seconds, case).result())
    for case in console.track(times, "memory", len(times), "calls"):
        yield row(case, times, *in_fresh_process(threads, probe, case))


def cases(size: int) -> list[Case]:
    """Return the decompositions of a weight of this size to measure."""
    return [Case(SVD, size), *(Case(method, size, shape) for shape in TERMS for method in (LOWRANK, PRINCIPAL))]


def seconds(case: Case) -> float:
    """Return the seconds of one decomposition, not counting the drawing of the weight."""
    weight = decaying_weight(case.size)
    begin = perf_counter()
    case.run(weight)
    return perf_counter() - begin


def probe(case: Case) -> tuple[int, float | None, float | None]:
    """Return the peak memory and both captured energies of a decomposition, in a process that has done nothing yet."""
    case._replace(size=SMALL).run(decaying_weight(SMALL))
    weight = decaying_weight(case.size)
    start, peak = peak_beyond(lambda: case.run(weight))
    if start is None:
        return peak, None, None
    assert start.error is not None, "set by `principal`"
    return peak, 1 - start.error**2, captured_by_svd(weight, case.form.parameters)


def captured_by_svd(weight: Tensor, parameters: int) -> float:
    """Return the share of energy in as many singular vectors as the parameters of a LoRA; a fraction of one counts."""
    energies = torch.linalg.svdvals(weight.double()).square()
    vectors = parameters / sum(weight.shape)
    whole = int(vectors)
    return float((energies[:whole].sum() + (vectors - whole) * energies[whole]) / energies.sum())


def row(case: Case, times: Mapping[Case, Sequence[float]], peak: int, captured: float | None, svd: float | None) -> Row:
    """Return the figures of a case; `times` has one per round for every case of its size."""
    ratios = [own / full for own, full in zip(times[case], times[Case(SVD, case.size)], strict=True)]
    shape = case.rank_shape
    return Row(
        method=case.method,
        size=case.size,
        rank=None if shape is None else prod(shape),
        separation_rank=TERMS[shape] if shape is not None and case.method == PRINCIPAL else None,
        seconds=median(times[case]),
        to_svd=median(ratios),
        peak_bytes=peak,
        captured=captured,
        captured_by_svd=svd,
    )


@lru_cache(maxsize=1)
def decaying_weight(size: int, seed: int = 0) -> Tensor:  # (size, size), float32
    """Return a weight whose singular values fall as k^-0.7 down to a floor of noise, determined by the seed.

    Its rows are drawn in blocks, so that drawing them does not raise the peak memory that is measured afterwards.
    """
    generator = torch.Generator().manual_seed(seed)
    scales = torch.arange(1, LEADING + 1) ** -0.7
    right = scales[:, None] * torch.randn(LEADING, size, generator=generator)
    weight = torch.empty(size, size)
    for rows in weight.split(BLOCK):
        left = torch.randn(len(rows), LEADING, generator=generator)
        rows.copy_(left @ right + torch.randn(len(rows), size, generator=generator))
    return weight


if __name__ == "__main__":
    main()
