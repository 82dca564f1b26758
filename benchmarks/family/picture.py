"""A plot of scores over trained parameters: one panel per data set."""

from collections.abc import Iterator, Mapping, Sequence
from math import isnan
from pathlib import Path
from statistics import geometric_mean
from typing import Literal

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.family.methods import GROUPS
from benchmarks.family.summary import Row
from pipeline import artifacts
from pipeline.evaluation import plots

PROTOCOL = "short"  # the one that all methods run
ABREAST = 3  # panels
MARKS = {  # color of Okabe & Ito's color-blind safe set, marker
    "core": ("#0072B2", "o"),
    "pooled": ("#009E73", "D"),
    "shared": ("#56B4E9", "^"),
    "factors": ("#CC79A7", "s"),
    "lora": ("#D55E00", "v"),
    "few": ("#E69F00", "<"),
    "svd": ("#000000", "x"),
}
LINES: Mapping[str, Literal[":", "--"]] = {
    "head alone": ":",
    "every weight": "--",
}  # drawn as lines, because their sizes would say little
ALIKE = 1.16  # sizes within this factor are drawn side by side, this far apart
MARGIN = 0.12  # of the range of scores, above and below


def draw(path: Path, table: Sequence[Row]) -> None:
    """Draw the test scores with their intervals; the legend is in the remaining panel."""
    shown = [row for row in table if row.protocol == PROTOCOL] or list(table)
    names = list(dict.fromkeys(row.data for row in shown))
    lines = -(-(len(names) + 1) // ABREAST)
    with style.context(["default", plots.STYLE]):
        figure = Figure(figsize=(12, 4.2 * lines), layout="constrained")
        FigureCanvasAgg(figure)
        grid = list(figure.subplots(lines, ABREAST, squeeze=False).flat)
        for axes, data in zip(grid, names, strict=False):
            _panel(axes, data, [row for row in shown if row.data == data])
        rest = grid[len(names) :]
        for axes in rest:
            axes.set_axis_off()
        rest[0].legend(handles=list(_handles(shown)), loc="center left", fontsize=10)
        with artifacts.replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=plots.DOTS_PER_INCH, metadata={"Software": None})


def _panel(axes: Axes, data: str, rows: Sequence[Row]) -> None:
    for row, place in _places([row for row in rows if row.group in MARKS]):
        color, marker = MARKS[row.group]
        if not isnan(row.test.low):
            axes.plot((place, place), (row.test.low, row.test.high), color=color, linewidth=1.2, alpha=0.7)
        axes.plot(place, row.test.mean, marker, color=color, markersize=5.5)
    for row in rows:
        if row.method in LINES:
            axes.axhline(row.test.mean, color=plots.GREY, linewidth=1, linestyle=LINES[row.method], zorder=0)
    _limit(axes, rows)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(10))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(data, fontsize=10)
    axes.set(xlabel="trained parameters, of like sizes side by side", ylabel="test score")
    axes.grid(color="#E5E5E5", linewidth=0.6)
    axes.set_axisbelow(True)


def _limit(axes: Axes, rows: Sequence[Row]) -> None:
    """Show the range of the means without the head alone, which would leave no room for the others."""
    shown = [row.test.mean for row in rows if row.trained] or [row.test.mean for row in rows]
    margin = MARGIN * (max(shown) - min(shown)) or 0.01
    low = min(shown) - margin
    axes.set_ylim(low, max(shown) + margin)
    for row in rows:
        if row.test.mean < low:
            axes.text(0.98, 0.02, f"{row.method}: {row.test.mean:.3f}", transform=axes.transAxes, ha="right")


def _places(rows: Sequence[Row]) -> Iterator[tuple[Row, float]]:
    """Yield each row with its position on the axis: similar sizes are spread around their mean size."""
    alike: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: row.trained):
        if not alike or row.trained > ALIKE * alike[-1][0].trained:
            alike.append([])
        alike[-1].append(row)
    for group in alike:
        center = geometric_mean(row.trained for row in group)
        for position, row in enumerate(group):
            yield row, center * ALIKE ** (position - (len(group) - 1) / 2)


def _handles(rows: Sequence[Row]) -> Iterator[Line2D]:
    for group, (color, marker) in MARKS.items():
        if any(row.group == group for row in rows):
            yield Line2D([], [], color=color, marker=marker, linestyle="", label=GROUPS[group])
    for method, dashes in LINES.items():
        if any(row.method == method for row in rows):
            yield Line2D([], [], color=plots.GREY, linestyle=dashes, label=method)
