"""Time, memory and captured energy of one call, in separate processes."""

from time import perf_counter
from typing import NamedTuple

from torch import Tensor

from benchmarks.factorize.cases import Case, decaying_weight
from benchmarks.processes import peak_beyond
from lsr.algebra.separable import kron_sum
from lsr.init.initialization import Start
from lsr.init.quality import captured_by_lora, captured_by_update

SMALL = 64


class Probe(NamedTuple):
    """Memory and captured energy of one call. Energies are fractions of the target's; None for torch's own calls."""

    peak: int  # bytes beyond those of the process with its weight
    captured: float | None
    captured_by_svd: float | None  # by the truncated SVD with as many parameters


def seconds(case: Case) -> float:
    """Return the seconds of one call, not counting the drawing of the weight."""
    weight = decaying_weight(case.size)
    before = perf_counter()
    case.run(weight)
    return perf_counter() - before


def probe(case: Case) -> Probe:
    """Return the memory and the captured energy of one call. It must be the first task of its process."""
    case._replace(size=SMALL).run(decaying_weight(SMALL))  # loads and sets up libraries
    weight = decaying_weight(case.size)
    start, peak = peak_beyond(lambda: case.run(weight))
    if start is None:
        return Probe(peak, None, None)
    return Probe(peak, *captured_energy(case, weight, start))


def captured_energy(
    case: Case,
    weight: Tensor,  # (m, n)
    start: Start,
) -> tuple[float, float]:
    """Return 1 - ||W - B A||^2 / ||W||^2, and the same of the best LoRA with as many parameters."""
    a, b = kron_sum(*start.a)[:, : case.size], kron_sum(*start.b)[: case.size]
    stored = sum(factor.numel() for factor in (*start.a, *start.b))
    return captured_by_update(weight, b @ a), captured_by_lora(weight, stored)
