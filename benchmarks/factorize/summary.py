"""The figures as tables on the terminal."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from benchmarks.factorize.cases import LOWRANK, SVD, Case
from benchmarks.factorize.measure import Probe
from benchmarks.factorize.stream import Pass
from pipeline.core import console

COLUMNS = ("call", "size", "r", "s", "seconds", "/ svd", "/ lowrank", "peak MB", "captured", "equal SVD", "target")
Times = Mapping[Case, Sequence[float]]  # one per round: all cases of a size take turns


class Target(NamedTuple):
    """Limits on the cost of an initialization."""

    seconds: float
    peak: float  # bytes

    def verdict(self, seconds: float, peak: int) -> str:
        """Return whether an initialization meets them, in a word or two."""
        missed = [name for name, over in [("time", seconds >= self.seconds), ("memory", peak >= self.peak)] if over]
        return f"misses {' and '.join(missed)}" if missed else "met"


TARGETS = {(768, 16, 16): Target(0.1, float("inf")), (4096, 16, 16): Target(3.0, 1e9)}  # by size, r, s


class Row(NamedTuple):
    """A call on a weight: medians over the rounds."""

    method: str
    size: int
    rank: int | None  # None: full
    separation_rank: int | None  # None if nothing is separated
    seconds: float
    to_svd: float  # seconds / those of the full SVD in the same round, so that common slowdowns cancel
    to_lowrank: float | None  # the same to torch.svd_lowrank of the same rank; None for the full SVD
    peak_bytes: int
    captured: float | None
    captured_by_svd: float | None
    target: str  # whether the target is met; empty without a target

    def cells(self) -> list[console.Cell]:
        """Return the fields as table cells: memory in MB, empty cells without a value."""
        fields: Sequence[Any] = self._replace(peak_bytes=self.peak_bytes // 10**6)
        return ["" if value is None else value for value in fields]


def row(case: Case, times: Times, probe: Probe) -> Row:
    """Return the figures of a case, compared with torch's own calls on the same matrix."""
    own = times[case]
    by_method = {(other.method, other.rank): taken for other, taken in times.items() if other.size == case.size}
    lowrank = by_method.get((LOWRANK, case.rank))
    target = TARGETS.get((case.size, case.rank, case.separation_rank))
    return Row(
        method=case.name,
        size=case.size,
        rank=case.rank or None,
        separation_rank=case.separation_rank or None,
        seconds=median(own),
        to_svd=_ratio(own, by_method[SVD, 0]),
        to_lowrank=None if lowrank is None else _ratio(own, lowrank),
        peak_bytes=probe.peak,
        captured=probe.captured,
        captured_by_svd=probe.captured_by_svd,
        target=target.verdict(median(own), probe.peak) if target else "",
    )


def _ratio(times: Sequence[float], others: Sequence[float]) -> float:
    return median(time / other for time, other in zip(times, others, strict=True))


def show_starts(rows: Sequence[Row]) -> None:
    """Print a table of the calls, and the targets."""
    console.table("factorize: initializations beside torch's decompositions", COLUMNS, [row.cells() for row in rows])
    for (size, rank, terms), target in TARGETS.items():
        memory = f" and {target.peak / 1e9:g} GB beyond the weight" if target.peak < float("inf") else ""
        console.line(f"target at {size} x {size}, r = {rank}, s = {terms}: under {target.seconds:g} s{memory}")


def show_stream(passes: Sequence[Pass]) -> None:
    """Print a table of the passes over the shards."""
    cells: list[list[console.Cell]] = [
        [p.start, p.layers, p.seconds, p.seconds_a_layer, p.peak // 10**6] for p in passes
    ]
    console.table("factorize: layers from shards", ["initialization", "layers", "seconds", "a layer", "peak MB"], cells)
