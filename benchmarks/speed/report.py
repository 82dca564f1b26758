"""The figures as tables on the terminal and as a plot."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.speed import layer, many, step
from benchmarks.speed.methods import FROZEN, METHODS, PEER, SMALLEST_PEER
from pipeline.compare.pictures import BLUE, DOTS_PER_INCH, ORANGE, STYLE
from pipeline.core import artifacts, console

SHOWN = (768, 2048, "float32")  # the layer in the plot


def show_layers(rows: Sequence[layer.Row]) -> None:
    """Print a line per case: times over the frozen layer's, then overheads over LoRA's."""
    for field, title in (
        ("forward_ratio", "layer, forward: time over the frozen layer's"),
        ("both_ratio", "layer, forward and backward: time over the frozen layer's"),
        ("both_overhead", f"layer, forward and backward: what is added to the frozen layer, over {PEER}'s"),
    ):
        cells: list[list[console.Cell]] = [
            [case.name, *(float(f"{getattr(row, field):.3g}") for row in measured)]
            for case, measured in _by_layer(rows)
        ]
        console.table(title, ["case", *METHODS], cells)
    for case, measured in _by_layer([row for row in rows if row.peak_bytes is not None]):
        peaks = [(row.method, row.peak_bytes // 10**6) for row in measured if row.peak_bytes is not None]
        console.table(f"layer, forward and backward, {case.name}", ["method", "peak MB"], peaks)


def show_steps(rows: Sequence[step.Row]) -> None:
    """Print a table of whole training steps for each case."""
    columns = [
        *("method", "parameters", "ms a step", "examples/s"),
        *(f"over {PEER}'s", f"over {SMALLEST_PEER}'s", "of the bound", "peak MB"),
    ]
    for case in dict.fromkeys(row[:3] for row in rows):
        cells: list[list[console.Cell]] = [
            [
                *(row.method, row.trained, 1000 * row.seconds, row.examples_a_second),
                *(row.speed_to_lora, row.speed_to_smallest, f"{row.bound_share:.0%}"),
                "" if row.peak_bytes is None else row.peak_bytes // 10**6,
            ]
            for row in rows
            if row[:3] == case
        ]
        console.table(f"step, {', '.join(case)}", columns, cells)


def show_many(rows: Sequence[many.Row | many.Loading]) -> None:
    """Print a table per number of adapters, and one of loading times."""
    served = [row for row in rows if isinstance(row, many.Row)]
    columns = ["method", "ms a batch", "examples/s", "time over one's", "speed over PEFT's", "bytes an adapter"]
    for length, count in dict.fromkeys((row.tokens, row.adapters) for row in served):
        cells: list[list[console.Cell]] = [
            [
                *(row.method, 1e3 * row.seconds, row.examples_a_second, row.slower_than_alone, row.faster_than_peer),
                "" if row.bytes_an_adapter is None else round(row.bytes_an_adapter),
            ]
            for row in served
            if (row.tokens, row.adapters) == (length, count)
        ]
        title = f"many: {many.MODEL}, {many.ROWS} rows of {length} tokens, {count:,} adapter{'s' * (count != 1)}"
        console.table(title, columns, cells)
    loaded: list[list[console.Cell]] = [
        [
            *(row.method, row.adapters, 1e3 * row.first_seconds, 1e3 * row.last_seconds),
            "" if row.file_seconds is None else 1e3 * row.file_seconds,
        ]
        for row in rows
        if isinstance(row, many.Loading)
    ]
    console.table("many: ms to load", ["method", "adapters", "a first one", "a last one", "all from one file"], loaded)


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


def _by_layer(rows: Sequence[layer.Row]) -> Iterator[tuple[layer.Case, list[layer.Row]]]:
    for case in dict.fromkeys(layer.Case(*row[:3]) for row in rows):
        yield case, [row for row in rows if row[:3] == case]
