"""All targets, and whether they are met.

If several methods are within a budget, the one with the best mean validation score represents it; likewise for rivals.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from benchmarks.family.experiment import DATA
from benchmarks.family.methods import METHODS, OURS, Pool
from benchmarks.family.summary import Estimate, Row, difference

FEW = ("LoRA r=1, one layer", "LoRA r=1, two layers", "LoRA r=1, three layers")


class Target(NamedTuple):
    """The required difference of test scores between LSR within a budget of parameters or bytes and a rival."""

    words: str
    counted: Literal["trained", "stored", "size"]  # size: bytes
    most: int
    rivals: tuple[str, ...]  # only those within the budget, unless trained parameters are counted
    least: float = 0.0  # difference
    errors: float = 0.0  # standard errors by which the difference must exceed it
    pool: Pool = "own"  # whose gradients make the frames of LSR


TARGETS = (
    Target("100 trained, beside LoRA r=1 in its best layer: -0.02", "trained", 100, FEW[:1], -0.02),
    Target("2,000 trained, beside LoRA r=1: -0.005", "trained", 2000, ("LoRA r=1",), -0.005),
    Target("pooled frames, beside LoRA r=1: -0.01", "trained", 200, ("LoRA r=1",), -0.01, pool="pooled"),
    Target(
        "pooled frames of other texts, beside LoRA r=1: -0.02", "trained", 200, ("LoRA r=1",), -0.02, pool="left out"
    ),
    # The budgets are those of LoRA in one, two and three layers, plus a few parameters for cores.
    Target("1,500 stored, beside LoRA r=1 in its best layers: two errors above", "stored", 1560, FEW, 0.0, 2),
    Target("3,000 stored, beside LoRA r=1 in its best layers: two errors above", "stored", 3120, FEW, 0.0, 2),
    Target("5,000 stored, beside LoRA r=1 in its best layers: two errors above", "stored", 5000, FEW, 0.0, 2),
    Target("9,216 stored, beside LoRA r=1: not below", "stored", 9216, ("LoRA r=1",)),
    *(
        Target(
            f"{most / 1000:.0f} kB, beside LoRA r=1{where}{epochs}: two errors above",
            "size",
            most,
            tuple(f"{name}{epochs}" for name in rivals),
            0.0,
            2,
        )
        for epochs in ("", ", two epochs")
        for most, where, rivals in (
            (6240, " in its best layers", FEW),
            (12480, " in its best layers", FEW),
            (18864, " in its best layers", FEW),
            (36864, "", ("LoRA r=1",)),
        )
    ),
)


class Check(NamedTuple):
    """The result of a target on a data set."""

    target: str
    protocol: str
    data: str
    ours: str
    rival: str
    difference: Estimate  # of test scores, by seed
    holds: bool

    def flat(self) -> dict[str, Any]:
        """Return the fields by name."""
        found = self.difference._asdict()
        return {**self._asdict(), "difference": {k: None if v != v else v for k, v in found.items()}}


def checks(table: Sequence[Row]) -> Iterator[Check]:
    """Yield a check for each target, protocol and data set whose methods have rows."""
    for target in TARGETS:
        for protocol in dict.fromkeys(row.protocol for row in table):
            for data in DATA:
                rows = [row for row in table if (row.protocol, row.data) == (protocol, data)]
                ours, rival = _best(_ours(target, rows)), _best(_rivals(target, rows))
                if ours and rival:
                    yield _check(target, ours, rival)


def _check(target: Target, ours: Row, rival: Row) -> Check:
    found = difference(ours.tests, rival.tests)
    bound = found.mean - (target.errors * found.error if target.errors else 0.0)  # one seed has no error: NaN fails
    return Check(target.words, ours.protocol, ours.data, ours.method, rival.method, found, bool(bound >= target.least))


def _ours(target: Target, rows: Sequence[Row]) -> list[Row]:
    within = [row for row in rows if getattr(row, target.counted) <= target.most]
    return [row for row in within if row.group in OURS and METHODS[row.method].pool == target.pool]


def _rivals(target: Target, rows: Sequence[Row]) -> list[Row]:
    chosen = [row for row in rows if row.method in target.rivals]
    return [row for row in chosen if target.counted == "trained" or getattr(row, target.counted) <= target.most]


def _best(rows: Sequence[Row]) -> Row | None:
    return max(rows, key=lambda row: row.validation, default=None)
