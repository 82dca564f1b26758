"""Scores against trained parameters: one panel per data set, all on one x-axis, scores of one kind on one y-axis."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isnan
from pathlib import Path
from statistics import geometric_mean
from typing import Literal

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from benchmarks.family.methods import GROUPS
from benchmarks.family.summary import Row
from pipeline.core import artifacts
from pipeline.evaluation import plots

PROTOCOL = "short"  # the one that all methods run
ABREAST = 2  # panels: of a width at which a page shows their letters as large as its own
ACCURACY = "test accuracy"
SCORES = {"movie-ratings": "test correlation (Pearson)"}  # of data sets with another score than accuracy
MARKS = {  # color of a color-blind safe set (Okabe & Ito; of signs and warm, Tol), marker
    "core": ("#0072B2", "o"),
    "signs": ("#332288", "p"),
    "pooled": ("#009E73", "D"),
    "shared": ("#56B4E9", "^"),
    "warm": ("#882255", "P"),
    "factors": ("#CC79A7", "s"),
    "lora": ("#D55E00", "v"),
    "few": ("#E69F00", "<"),
    "svd": ("#000000", "x"),
}
LINES: Mapping[str, tuple[Literal[":", "--"], str]] = {
    "head alone": (":", "head only"),
    "every weight": ("--", "full fine-tuning"),
}  # drawn as lines, because their sizes would say little
ALIKE = 1.16  # sizes within this factor are drawn side by side, this far apart
MARGIN = 0.06  # of the range of scores, above and below


def draw(path: Path, table: Sequence[Row]) -> None:
    """Draw the test scores with their intervals, and a legend below the panels."""
    shown = [row for row in shown_of(table) if row.group in MARKS or row.method in LINES]

    def panel(axes: Axes, data: str, rows: Sequence[Row]) -> None:
        _panel(axes, rows)
        alike = [row for row in shown if score_of(row.data) == score_of(data)]
        axes.set_ylim(*limits([row.test.mean for row in alike]))

    panels(path, shown, panel, "trained parameters (similar numbers side by side)", list(_handles(shown)))


def shown_of(table: Sequence[Row]) -> list[Row]:
    """Return the rows of the protocol that all methods run, or all if there are none."""
    return [row for row in table if row.protocol == PROTOCOL] or list(table)


def panels(
    path: Path,
    rows: Sequence[Row],
    panel: Callable[[Axes, str, Sequence[Row]], None],
    label: str,  # of the x-axis
    handles: Sequence[Line2D],  # of the legend
) -> None:
    """Draw a panel for each data set, all on one x-axis, and a legend below."""
    by_data = {data: [row for row in rows if row.data == data] for data in dict.fromkeys(row.data for row in rows)}
    lines = -(-len(by_data) // ABREAST)
    with style.context(["default", plots.STYLE]):
        figure = Figure(figsize=(8, 2.8 * lines + 1.2), layout="constrained")
        FigureCanvasAgg(figure)
        grid = list(figure.subplots(lines, ABREAST, squeeze=False, sharex=True).flat)
        for axes, (data, chosen) in zip(grid, by_data.items(), strict=False):
            panel(axes, data, chosen)
            axes.set_title(data, fontsize="medium")
            axes.set_ylabel(score_of(data))
            axes.tick_params(labelbottom=True)
            axes.grid(color="#E5E5E5", linewidth=0.6)
            axes.set_axisbelow(True)
        for axes in grid[len(by_data) :]:
            axes.set_axis_off()
        for axes in grid[: len(by_data)][-ABREAST:]:
            axes.set_xlabel(label)
        figure.legend(handles=handles, loc="outside lower center", ncols=3 if len(handles) > 4 else 2)
        with artifacts.replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=plots.DOTS_PER_INCH, metadata={"Software": None})


def score_of(data: str) -> str:
    """Return what the scores of a data set are."""
    return SCORES.get(data, ACCURACY)


def _panel(axes: Axes, rows: Sequence[Row]) -> None:
    for row, place in _places([row for row in rows if row.group in MARKS]):
        color, marker = MARKS[row.group]
        if not isnan(row.test.low):
            axes.plot((place, place), (row.test.low, row.test.high), color=color, linewidth=1.2, alpha=0.7)
        axes.plot(place, row.test.mean, marker, color=color, markersize=5)
    for row in rows:
        if row.method in LINES:
            axes.axhline(row.test.mean, color=plots.GREY, linewidth=1, linestyle=LINES[row.method][0], zorder=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(10))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())


def limits(means: Sequence[float]) -> tuple[float, float]:
    """Return the range of the means with a margin, for an axis; intervals may leave it."""
    margin = MARGIN * (max(means) - min(means)) or 0.01
    return min(means) - margin, max(means) + margin


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
    for method, (dashes, label) in LINES.items():
        if any(row.method == method for row in rows):
            yield Line2D([], [], color=plots.GREY, linestyle=dashes, label=label)
