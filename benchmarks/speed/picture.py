"""The figures of layers and steps as a plot."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.speed import layer, step
from benchmarks.speed.methods import FROZEN
from pipeline.compare.pictures import BLUE, DOTS_PER_INCH, ORANGE, STYLE
from pipeline.core import artifacts

SHOWN = (768, 2048, "float32")  # the layer in the plot


def draw(path: Path, layers: Sequence[layer.Row], steps: Sequence[step.Row]) -> None:
    """Draw the time of a layer, and of a whole step in each dtype, with each method, relative to frozen."""
    shown = [row for row in layers if row[:3] == SHOWN]
    width, count, dtype = SHOWN
    cases = [case for case in step.CASES if case[:2] == ("RoBERTa-base", step.ALL_LINEAR)]
    measured = {case.dtype: rows for case in cases if (rows := [row for row in steps if row[:3] == case])}
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(2 + 3 * (1 + len(measured)), 3.2), layout="constrained")
        FigureCanvasAgg(figure)
        first, *others = figure.subplots(1, 1 + len(measured), sharex=True, sharey=True, squeeze=False)[0]
        _bars(first, [row.method for row in shown], [row.both_ratio for row in shown])
        first.set_xlabel("forward and backward time (frozen layer: 1)")
        first.set_title(f"one layer, d = {width}, {count:,} tokens, {dtype}", fontsize="medium")
        for axes, (dtype, rows) in zip(others, measured.items(), strict=True):
            (frozen,) = (row.examples_a_second for row in rows if row.method == FROZEN)
            _bars(axes, [row.method for row in rows], [frozen / row.examples_a_second for row in rows])
            axes.set_xlabel("time of a training step (frozen layers: 1)")
            axes.set_title(f"RoBERTa-base, all linear layers, {dtype}", fontsize="medium")
        first.invert_yaxis()
        with artifacts.replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})


def _bars(axes: Axes, names: Sequence[str], values: Sequence[float]) -> None:
    bars = axes.barh(names, values, color=[ORANGE if name.startswith("LSR") else BLUE for name in names])
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.margins(x=0.12)
    axes.tick_params(axis="y", length=0)
