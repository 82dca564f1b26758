"""The Pareto picture: scores on the main average by trained parameters and by bytes. PNG, the same bytes every time."""

from collections.abc import Collection, Sequence
from math import sqrt
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, NullFormatter

from pipeline.compare.comparison import Comparison
from pipeline.compare.estimates import Estimate
from pipeline.compare.precision import AS_TRAINED
from pipeline.core import artifacts

STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
DOTS_PER_INCH = 150
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#595959"  # the first two from Okabe & Ito's color-blind safe set
FAR_BELOW, LEAST_SPAN = 3.0, 2.0  # times the lead of the best over the median; percentage points
MOST = 100  # times the parameters of the baseline: what is larger, such as full fine-tuning, is a line
APART = 0.12  # of the range of scores: closer labels would overlap
BEHIND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5}  # a label
Point = tuple[int, float, str, Estimate]  # size, score in percent, method, its interval


def draw(path: Path, comparison: Comparison) -> None:
    """Draw scores with intervals over seeds, and the Pareto fronts, where no smaller method is better.

    Methods without parameters of an adapter are left out, and those far below are beyond the lower edge.

    Raises:
        OSError: if the file cannot be written.
    """
    every = comparison.rows[comparison.main]
    most = MOST * (every[comparison.baseline].trained or 1)
    rows = [row for row in every.values() if 0 < (row.trained or 0) <= most]
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(9.0, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, 2, sharey=True)
        _panel(panels[0], [(row.trained, row.method, row.score) for row in rows])
        whole = {row.method for row in rows if row.precision == AS_TRAINED}
        _panel(panels[1], [(row.bytes, row.method, row.score_at_bytes) for row in rows], hollow=whole)
        for row in every.values():
            if row.score.mean is not None and (row.method == comparison.baseline or (row.trained or 0) > most):
                for axes in panels:
                    axes.axhline(row.score.mean, color=GREY, linewidth=0.8, linestyle="--")
                    _name(axes, row.method, (0.99, row.score.mean), -1, ("axes fraction", "data"))
        panels[0].set(xlabel="trained parameters of the adapter", ylabel=f"{comparison.main}, %")
        panels[1].set(xlabel="bytes of its file, with the head; hollow: not rounded")
        groups = ((ORANGE, "LSR"), (BLUE, "LoRA"), (GREY, "others"))
        handles = [Line2D([], [], color=color, marker="o", linestyle="", label=name) for color, name in groups]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(groups))
        with artifacts.replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})


def color(method: str) -> str:
    """Return the color of a method: LSR's forms, LoRA, and all others."""
    return ORANGE if method.startswith("LSR") else BLUE if method.startswith("LoRA r=") else GREY


def lowest(means: Sequence[float]) -> float:
    """Return the score below which a method is not drawn, because it would leave no room for the others."""
    return median(means) - max(LEAST_SPAN, FAR_BELOW * (max(means) - median(means)))


def _panel(axes: Axes, methods: Sequence[tuple[int | None, str, Estimate]], hollow: Collection[str] = ()) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.08)
    axes.grid(alpha=0.3, linewidth=0.5)
    points = [(size, score.mean, name, score) for size, name, score in methods if size and score.mean is not None]
    limit = lowest([point[1] for point in points]) if points else 0.0
    drawn = sorted((point for point in points if point[1] >= limit), key=lambda point: (point[0], -point[1]))
    for size, mean, method, (_, low, high) in drawn:
        fill = "white" if method in hollow else color(method)
        axes.plot(size, mean, "o", color=color(method), markerfacecolor=fill, markersize=5, zorder=3)
        if low is not None and high is not None:
            axes.vlines(size, low, high, color=color(method), linewidth=1, alpha=0.4)
    if drawn:
        _front(axes, drawn)


def _front(axes: Axes, drawn: Sequence[Point]) -> None:
    """Draw the front and name its methods, except where names would overlap; long intervals are cut."""
    means = [mean for _, mean, _, _ in drawn]
    span = max(means) - min(means)
    axes.set_ylim(min(means) - 0.3 - APART * span, max(means) + 0.3 + APART * span)
    front = [point for place, point in enumerate(drawn) if point[1] > max(means[:place], default=0.0)]
    axes.step([point[0] for point in front], [point[1] for point in front], where="post", color=GREY, linewidth=0.7)
    middle, named = sqrt(drawn[0][0] * drawn[-1][0]), float("-inf")
    for size, mean, method, _ in front:
        if mean >= named + APART * span:
            named = mean
            _name(axes, method, (size, mean), 1 if size <= middle else -1)  # toward the middle of the panel


def _name(axes: Axes, text: str, place: tuple[float, float], side: int, of: Any = "data") -> None:
    """Write a name above a place, where the front has no point, at its right (side 1) or left (-1)."""
    align = "left" if side > 0 else "right"
    label = axes.annotate(text, place, (5 * side, 5), of, textcoords="offset points", ha=align, bbox=BEHIND)
    label.set_in_layout(False)
