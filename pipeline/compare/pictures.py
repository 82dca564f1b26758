"""The Pareto picture: scores by size, a panel per task and one for their average. PNG, the same bytes every time."""

from collections.abc import Sequence
from math import ceil, sqrt
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from pipeline.compare.comparison import AVERAGE, Comparison, Row
from pipeline.core import artifacts

STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
DOTS_PER_INCH = 150
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#595959"  # the first two from Okabe & Ito's color-blind safe set
ABREAST = 3  # panels
FAR_BELOW, LEAST_SPAN = 3.0, 2.0  # times the lead of the best over the median; percentage points
APART = 0.06  # of the range of scores: closer labels would overlap
BEYOND = 0.12  # of the range of means, for intervals
MOST_NAMES = 2  # of methods far below


def draw(path: Path, comparison: Comparison) -> None:
    """Draw scores with intervals over trained parameters, and the Pareto front, where no smaller method is better.

    Methods without parameters of an adapter, such as the head alone, are dashed lines; those far below are named but
    not drawn.

    Raises:
        OSError: if the file cannot be written.
    """
    shown = [*comparison.tasks, AVERAGE] if len(comparison.tasks) > 1 else list(comparison.tasks)
    lines = ceil(len(shown) / ABREAST)
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(3.6 * min(ABREAST, len(shown)), 3.0 * lines + 0.5), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(lines, min(ABREAST, len(shown)), sharex=True, squeeze=False).flat
        for axes, task in zip(panels, shown, strict=False):
            _panel(axes, points(list(comparison.rows[task].values())))
            axes.set_title(task, fontsize="medium")
        for axes in list(panels)[len(shown) :]:
            axes.remove()
        figure.supxlabel("trained parameters of the adapter", fontsize="medium")
        figure.supylabel("score, %", fontsize="medium")
        groups = ((ORANGE, "LSR"), (BLUE, "LoRA"), (GREY, "others"))
        handles = [Line2D([], [], color=color, marker="o", linestyle="", label=name) for color, name in groups]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(groups))
        with artifacts.replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})


def color(method: str) -> str:
    """Return the color of a method: LSR's forms, LoRA, and all others."""
    return ORANGE if method.startswith("LSR") else BLUE if method.startswith("LoRA r=") else GREY


class Point(NamedTuple):
    """A method in a panel."""

    method: str
    size: int  # trained parameters; 0 if it has none
    mean: float
    low: float  # 95 % interval over seeds
    high: float


def points(rows: Sequence[Row]) -> list[Point]:
    """Return the methods that have a score."""
    listed = []
    for row in rows:
        mean, low, high, _ = row.score
        if mean is not None:
            ends = (mean if low is None else low, mean if high is None else high)
            listed.append(Point(row.method, row.size.trained or 0, mean, *ends))
    return listed


def lowest(means: Sequence[float]) -> float:
    """Return the score below which a method is not drawn, because it would leave no room for the others."""
    return median(means) - max(LEAST_SPAN, FAR_BELOW * (max(means) - median(means)))


def _panel(axes: Axes, every: Sequence[Point]) -> None:
    limit = lowest([point.mean for point in every]) if every else 0.0
    drawn = [point for point in every if point.mean >= limit]
    for point in drawn:
        if point.size:
            axes.plot(point.size, point.mean, "o", color=color(point.method), markersize=4, zorder=3)
            axes.vlines(point.size, point.low, point.high, color=color(point.method), linewidth=1, alpha=0.45)
        else:
            axes.axhline(point.mean, color=GREY, linewidth=0.8, linestyle="--")
            _annotate(axes, point.method, (0.01, point.mean), ("axes fraction", "data"), va="bottom")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=9))
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.08)
    axes.grid(alpha=0.3, linewidth=0.5)
    if means := [point.mean for point in drawn]:
        spare = max(0.3, BEYOND * (max(means) - min(means)))
        axes.set_ylim(min(means) - spare, max(means) + spare)  # long intervals are cut
    if sized := [point for point in drawn if point.size]:
        _front(axes, sized)
    if below := [point for point in every if point.mean < limit]:
        names = ", ".join(f"{point.method} {point.mean:.1f}" for point in below)
        text = names if len(below) <= MOST_NAMES else f"{len(below)} methods"
        _annotate(axes, f"below: {text}", (0.99, 0.01), "axes fraction", ha="right")


def _front(axes: Axes, sized: Sequence[Point]) -> None:
    """Draw the front and name its methods, except where names would overlap."""
    front: list[Point] = []
    for point in sorted(sized, key=lambda point: (point.size, -point.mean)):
        if not front or point.mean > front[-1].mean:
            front.append(point)
    axes.step([p.size for p in front], [p.mean for p in front], where="post", color=GREY, linewidth=0.7)
    low, high = axes.get_ylim()
    middle = sqrt(min(point.size for point in sized) * max(point.size for point in sized))
    named = float("-inf")
    for point in front:
        if point.mean >= named + APART * (high - low):
            named, left = point.mean, point.size <= middle
            # No point is above the front, so names go there, toward the middle of the panel.
            side, shift = ("left", 4) if left else ("right", -4)
            _annotate(axes, point.method, (point.size, point.mean), "data", (shift, 4), ha=side)


def _annotate(
    axes: Axes, text: str, place: tuple[float, float], of: Any, shift: tuple[int, int] = (0, 0), **align: str
) -> None:
    """Write small text at a place, `shift` points away, for which the layout makes no room."""
    annotation = axes.annotate(text, place, shift, of, textcoords="offset points", fontsize=7, **align)  # type: ignore[arg-type]
    annotation.set_in_layout(False)


def _short(value: float, _: int) -> str:
    """Return a number as 10, 1k or 10M."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"
