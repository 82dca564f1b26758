"""Time, memory and captured energy of one call, in separate processes."""

from time import perf_counter
from typing import NamedTuple

from torch import Tensor

from benchmarks.factorize.cases import Case, decaying_weight
from benchmarks.processes import peak_beyond
from lsr.algebra.separable import kron_sum
from lsr.init.initialization import Start
from lsr.init.quality import captured_by_lora, captured_by_rows, captured_by_svd, captured_by_update

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
    """Return the share of the target's energy that initial factors capture, and that of an SVD with as many parameters.

    `row_space`: ||W P||^2 / ||W||^2 with P the projection onto row(A), compared with as many right singular vectors as
    fit into the parameters of A. Others: 1 - ||T - B A||^2 / ||T||^2, compared with the best LoRA; T is the weight, or
    for `minor` its trailing part.
    """
    a, b = kron_sum(*start.a)[:, : case.size], kron_sum(*start.b)[: case.size]
    stored_a, stored_b = (sum(factor.numel() for factor in side) for side in (start.a, start.b))
    if case.method == "row_space":
        assert start.rows is not None  # set by this initialization
        ours, svd = captured_by_rows(weight, start.rows, a), captured_by_svd(weight, case.rank, stored_a)
        return ours.energy, svd.energy
    target = weight.double()
    if case.method == "minor":
        assert start.rows is not None
        target = target @ start.rows.T @ start.rows
    return captured_by_update(target, b @ a), captured_by_lora(target, stored_a + stored_b)
