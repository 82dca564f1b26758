"""What one learning rate for all data sets would cost: the score lost beside the best rate of the grid.

The validation scores of the cells that tune, with the first seed. A loss of up to two points is noise: the short
protocol scores 320 to 500 examples. On movie-pairs whole trainings fail at any rate, so its losses stand apart.
"""

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from benchmarks.family import plan
from benchmarks.family.experiment import GRID, PROTOCOLS, Run
from benchmarks.family.methods import METHODS, scales
from benchmarks.family.plan import Found
from benchmarks.family.report import markdown_table
from pipeline.core import artifacts

APART = "movie-pairs"
FILE = "rates.md"


class Losses(NamedTuple):
    """The points of score that a method loses at each rate of the grid."""

    method: str
    mean: tuple[float, ...]  # over the data sets except APART
    worst: tuple[float, ...]
    apart: tuple[float, ...]  # on that one; empty if it is not finished
    data: int  # how many data sets are in the mean


def losses(protocol: str, found: Found) -> list[Losses]:
    """Return a row for each method whose grid is finished on at least two data sets, and has one place."""
    by_method: dict[str, dict[str, tuple[float, ...]]] = {}
    for run in plan.runs(protocol):
        if (lost := _lost(run, found)) is not None:
            by_method.setdefault(run.method, {})[run.data] = lost
    listed = []
    for method, by_data in by_method.items():
        usual = [lost for data, lost in by_data.items() if data != APART]
        if len(usual) > 1:
            by_rate = list(zip(*usual, strict=True))
            mean, worst = (tuple(function(at_rate) for at_rate in by_rate) for function in (fmean, max))
            listed.append(Losses(method, mean, worst, by_data.get(APART, ()), len(usual)))
    return listed


def _lost(run: Run, found: Found) -> tuple[float, ...] | None:
    cells = plan.grid(run)
    if len(METHODS[run.method].places) > 1 or not cells or any(cell.key() not in found for cell in cells):
        return None
    scores = [100 * found[cell.key()]["validation"] for cell in cells]
    return tuple(max(scores) - score for score in scores)


def write(found: Found, folder: Path) -> None:
    """Write rates.md."""
    with artifacts.replacing(folder / FILE) as path:
        path.write_text("".join(f"{line}\n" for line in markdown(found)), encoding="utf-8")


def markdown(found: Found) -> Iterator[str]:
    """Yield the lines: a table for each protocol."""
    yield "# What one learning rate for all data sets would cost"
    yield ""
    yield "Points of validation score below the best rate of the grid on the same data set, with the first seed: mean"
    yield f"over the data sets except {APART}, in parentheses the largest, and on {APART}. Up to two points are"
    yield f"noise. Some methods have other rates ({scales()})."
    for protocol in PROTOCOLS:
        if rows := losses(protocol, found):
            yield f"\n## {protocol}\n"
            names = [f"{rate:g}" for rate in GRID]
            columns = ["method", "data sets", *names, *(f"{APART}, {name}" for name in names)]
            yield from markdown_table(columns, map(_cells, rows))


def _cells(row: Losses) -> list[str]:
    usual = [f"{mean:.1f} ({worst:.1f})" for mean, worst in zip(row.mean, row.worst, strict=True)]
    return [row.method, str(row.data), *usual, *([f"{lost:.1f}" for lost in row.apart] or [""] * len(GRID))]
