"""Scores against bytes, of LSR in frames of signs and of LoRA in some or all layers: one panel per data set."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.family.checks import FEW
from benchmarks.family.picture import LINES, limits, panels, shown_of
from benchmarks.family.summary import Row
from pipeline.evaluation import plots

RIVALS = (*FEW, "LoRA r=1")
FULL = "every weight"


class Series(NamedTuple):
    """Methods that differ in size, connected by a line."""

    color: str
    marker: str
    dashes: Literal["-", ":"]
    methods: tuple[str, ...]
    shift: float = 1.0  # factor of the size, so that intervals do not cover each other


SERIES: Mapping[str, Series] = {
    "LSR, 16 to 96 directions of signs": Series(
        "#0072B2", "o", "-", tuple(f"{count} directions, signs" for count in (16, 32, 64, 96))
    ),
    "LoRA r = 1 in its best layer, two, three, and in all": Series("#D55E00", "v", "-", RIVALS, 0.98),
    "that LoRA, trained for two epochs": Series(
        "#E69F00", "^", ":", tuple(f"{name}, two epochs" for name in RIVALS), 1.02
    ),
}


def draw(path: Path, table: Sequence[Row]) -> None:
    """Draw the test scores with their intervals, and a legend below the panels."""
    chosen = {FULL, *(name for series in SERIES.values() for name in series.methods)}
    shown = [row for row in shown_of(table) if row.method in chosen]
    panels(path, shown or table, _panel, "kB of stored parameters", list(_handles(shown)))


def _panel(axes: Axes, _: str, rows: Sequence[Row]) -> None:
    known = {row.method: row for row in rows}
    for series in SERIES.values():
        line = [known[name] for name in series.methods if name in known]
        places = [row.size / 1000 * series.shift for row in line]
        axes.plot(
            places,
            [row.test.mean for row in line],
            series.dashes,
            marker=series.marker,
            color=series.color,
            markersize=5,
        )
        ends = [row.test.low for row in line], [row.test.high for row in line]
        axes.vlines(places, *ends, color=series.color, linewidth=1.2, alpha=0.5)
    if FULL in known:
        axes.axhline(known[FULL].test.mean, color=plots.GREY, linewidth=1, linestyle=LINES[FULL][0], zorder=0)
    axes.set_ylim(*limits([row.test.mean for row in rows]))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([3, 6, 12, 18, 37]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _handles(rows: Sequence[Row]) -> Iterator[Line2D]:
    known = {row.method for row in rows}
    for label, series in SERIES.items():
        if known.intersection(series.methods):
            yield Line2D([], [], color=series.color, marker=series.marker, linestyle=series.dashes, label=label)
    if FULL in known:
        dashes, label = LINES[FULL]
        yield Line2D([], [], color=plots.GREY, linestyle=dashes, label=label)
