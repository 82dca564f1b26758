"""The figures as tables on the terminal and as a plot, and the targets."""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.speed import growth, layer, race, step, terms
from benchmarks.speed.methods import FROZEN, METHODS, OURS, PEER, SMALLEST_PEER
from pipeline.core import artifacts, console
from pipeline.evaluation import plots

SHOWN = (768, 2048, "float32")  # the layer in the plot and the targets


class Target(NamedTuple):
    """A target for a figure."""

    words: str
    found: float
    wanted: float
    at_most: bool = True

    @property
    def line(self) -> str:
        """The target and its result."""
        is_met = self.found <= self.wanted if self.at_most else self.found >= self.wanted
        bound = "at most" if self.at_most else "at least"
        return f"{self.words}: {self.found:.2f} ({bound} {self.wanted:g}: {'met' if is_met else 'missed'})"


def show_layers(rows: Sequence[layer.Row]) -> None:
    """Print a line per case: times over the frozen layer's, then overheads over LoRA's."""
    for field, title in (
        ("forward_ratio", "layer, forward: time over the frozen layer's"),
        ("both_ratio", "layer, forward and backward: time over the frozen layer's"),
        ("both_overhead", f"layer, forward and backward: what is added to the frozen layer, over {PEER}'s"),
        ("bound_share", "layer, forward and backward: least possible time of the frozen layer over the time"),
    ):
        console.table(title, ["case", *METHODS], [_line(case, found, field) for case, found in _cases(rows)])
    peaks = [row for row in rows if row.peak_bytes is not None]
    for case, found in _cases(peaks):
        cells: list[list[console.Cell]] = [[row.method, (row.peak_bytes or 0) // 10**6] for row in found]
        console.table(f"layer, forward and backward, {case.name}", ["method", "peak MB"], cells)


def show_steps(rows: Sequence[step.Row]) -> None:
    """Print a table of whole training steps."""
    columns = [
        "method",
        "parameters",
        "ms a step",
        "examples/s",
        f"over {PEER}'s",
        f"over {SMALLEST_PEER}'s",
        "of the bound",
        "peak MB",
    ]
    for case in dict.fromkeys(row[:3] for row in rows):
        found = [row for row in rows if row[:3] == case]
        cells: list[list[console.Cell]] = [
            [
                *(r.method, r.trained, 1000 * r.seconds, r.examples_a_second),
                *(
                    r.speed_to_lora,
                    r.speed_to_smallest,
                    f"{r.bound_share:.0%}",
                    "" if r.peak_bytes is None else r.peak_bytes // 10**6,
                ),
            ]
            for r in found
        ]
        console.table(f"step, {', '.join(case)}", columns, cells)


def show_terms(rows: Sequence[terms.Growth | terms.Side]) -> None:
    """Print the cost of more terms, and the savings of applying factors one by one."""
    growths, sides = _growths(rows), [row for row in rows if isinstance(row, terms.Side)]
    title = (
        f"terms: forward and backward, d={terms.WIDTH}, {terms.TOKENS:,} tokens, rank shape {list(terms.RANK_SHAPE)}"
    )
    console.table(
        title,
        ["s", "ms", "overhead over one term's"],
        [[g.separation_rank, 1e3 * g.seconds, g.overhead] for g in growths],
    )
    cells: list[list[console.Cell]] = [
        [
            s.width,
            str(list(s.rank_shape)),
            s.separation_rank,
            s.tokens,
            *(1e3 * seconds for seconds in (s.layer_seconds, s.matrix_seconds, s.factors_seconds)),
            f"{s.gain:+.1%}",
            "factors" if s.is_chosen else "matrix",
        ]
        for s in sides
    ]
    columns = [
        "d",
        "rank shape",
        "s",
        "tokens",
        "layer ms",
        "as a matrix",
        "by factors",
        "saves of the layer",
        "chosen",
    ]
    console.table("terms: A x without gradients", columns, cells)


def show_growth(rows: Sequence[growth.Row]) -> None:
    """Print what each size costs, and the exponents of the power laws that fit all sizes best."""
    for what in dict.fromkeys(row.what for row in rows):
        found = [row for row in rows if row.what == what]
        cells: list[list[console.Cell]] = [[row.size, 1e3 * row.seconds, row.peak_bytes / 1e6] for row in found]
        exponents = [
            exponent([(row.size, getattr(row, field)) for row in found]) for field in ("seconds", "peak_bytes")
        ]
        console.table(f"growth: {what}", [what, "ms", "peak MB"], [*cells, ["exponent", *exponents]])


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """Return p of the power law c n^p that fits values of several sizes n best, in logarithms."""
    sizes, values = np.log(np.array(points)).T
    return round(float(np.polyfit(sizes, values, 1)[0]), 2)


def show_race(rows: Sequence[race.Row]) -> None:
    """Print a table of the times to the target scores."""
    cells: list[list[console.Cell]] = []
    for row in rows:
        wanted = race.target(rows, row.data)
        seconds, step = row.reached(wanted) or ("not reached", row.steps[-1])
        cells.append([row.data, row.name, row.trained, round(wanted, 3), seconds, step, row.scores[-1]])
    columns = ["data", "contender", "parameters", "target", "seconds", "steps", "last accuracy"]
    console.table("race: seconds from raw text to a test accuracy", columns, cells)


def layer_targets(rows: Sequence[layer.Row]) -> Iterator[Target]:
    """Yield the targets for the cost on one layer."""
    shown = {row.method: row for row in rows if row[:3] == SHOWN}
    if shown:
        ours = shown[OURS]
        yield Target(f"overhead over {PEER}'s, forward", ours.forward_overhead, 0.2)
        yield Target(f"overhead over {PEER}'s, forward and backward", ours.both_overhead, 0.35)
    by_method = {row.method: row for row in rows if row.peak_bytes is not None and row.dtype == "float32"}
    if by_method:
        peak = (by_method[OURS].peak_bytes or 0) / (by_method[PEER].peak_bytes or 1)
        yield Target(f"peak memory of the layer over {PEER}'s", peak, 1)


def step_targets(rows: Sequence[step.Row]) -> Iterator[Target]:
    """Yield the targets for a whole step with all linear layers adapted."""
    for model, dtype in dict.fromkeys((row.model, row.dtype) for row in rows):
        found = {row.method: row for row in rows if row[:3] == (model, step.ALL_LINEAR, dtype)}
        if found:
            ours, peer, lokr = found[OURS], found[PEER], found["LoKr r=8"]
            words = f"{model}, {dtype}, all linear"
            yield Target(f"{words}, examples/s over {PEER}'s", ours.speed_to_lora, 1.1, at_most=False)
            yield Target(f"{words}, examples/s over {SMALLEST_PEER}'s", ours.speed_to_smallest, 1, at_most=False)
            speed = ours.examples_a_second / lokr.examples_a_second
            yield Target(f"{words}, examples/s over LoKr's", speed, 1.4, at_most=False)
            if ours.peak_bytes is not None and peer.peak_bytes is not None:
                yield Target(f"{words}, peak over {PEER}'s", ours.peak_bytes / peer.peak_bytes, 1)


def terms_targets(rows: Sequence[terms.Growth | terms.Side]) -> Iterator[Target]:
    """Yield the target for the growth of the time with the separation rank."""
    most = _growths(rows)[-1]
    yield Target(f"overhead of {most.separation_rank} terms over one term's", most.overhead, 1.1)


def race_targets(rows: Sequence[race.Row]) -> Iterator[Target]:
    """Yield the targets for the time to the scores."""
    for data in race.DATA:
        wanted = race.target(rows, data)
        ran = {row.name: row for row in rows if row.data == data}
        reached = {name: row.reached(wanted) for name, row in ran.items()}
        ours, peer = (reached.get(one.name) for one in (race.OURS, race.PEER))
        words = f"{data}: time to an accuracy of {wanted:.3f}"
        # A LoRA that does not reach it would take longer than its whole training.
        seconds, note = (peer[0], "") if peer else (ran[race.PEER.name].seconds[-1], " (not reached: all of its time)")
        yield Target(f"{words}, ours over LoRA's{note}", ours[0] / seconds if ours else math.inf, 0.7)


def show_targets(targets: Iterable[Target]) -> None:
    """Print a line per target."""
    for target in targets:
        console.line(target.line)


def draw(path: Path, layers: Sequence[layer.Row], steps: Sequence[step.Row]) -> None:
    """Draw the time of a layer, and of a whole step in each dtype, with each method, relative to frozen."""
    shown = [row for row in layers if row[:3] == SHOWN]
    width, count, dtype = SHOWN
    cases = [case for case in step.CASES if case[:2] == ("RoBERTa-base", step.ALL_LINEAR)]
    found = {case.dtype: rows for case in cases if (rows := [row for row in steps if row[:3] == case])}
    with style.context(["default", plots.STYLE]):
        figure = Figure(figsize=(2 + 3 * (1 + len(found)), 3.2), layout="constrained")
        FigureCanvasAgg(figure)
        first, *others = figure.subplots(1, 1 + len(found), sharex=True, sharey=True)
        _bars(first, [row.method for row in shown], [row.both_ratio for row in shown])
        first.set_xlabel("forward and backward time (frozen layer: 1)")
        first.set_title(f"one layer, d = {width}, {count:,} tokens, {dtype}", fontsize="medium")
        for axes, (dtype, rows) in zip(others, found.items(), strict=True):
            (frozen,) = (row.examples_a_second for row in rows if row.method == FROZEN)
            _bars(axes, [row.method for row in rows], [frozen / row.examples_a_second for row in rows])
            axes.set_xlabel("time of a training step (frozen layers: 1)")
            axes.set_title(f"RoBERTa-base, all linear layers, {dtype}", fontsize="medium")
        first.invert_yaxis()
        with artifacts.replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=plots.DOTS_PER_INCH, metadata={"Software": None})


def draw_race(path: Path, rows: Sequence[race.Row]) -> None:
    """Draw the score of LSR and LoRA by the time from raw text, a panel per data set, with the target."""
    with style.context(["default", plots.STYLE]):
        figure = Figure(figsize=(8, 5), layout="constrained")
        FigureCanvasAgg(figure)
        panels = list(figure.subplots(2, 2).flat)
        for axes, data in zip(panels, race.DATA, strict=True):
            for contender, color in ((race.OURS, plots.ORANGE), (race.PEER, plots.BLUE)):
                (row,) = (row for row in rows if (row.data, row.name) == (data, contender.name))
                axes.plot(row.seconds, row.scores, "o-", color=color, markersize=3, label=contender.name)
            axes.axhline(race.target(rows, data), color=plots.GREY, linewidth=0.8, linestyle="--", label="target")
            axes.set_title(data, fontsize="medium")
            axes.set_xlim(0, None)
        for axes in panels[-2:]:
            axes.set_xlabel("seconds from raw text, without evaluations")
        figure.supylabel("test accuracy", fontsize="medium")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        with artifacts.replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=plots.DOTS_PER_INCH, metadata={"Software": None})


def _bars(axes: Axes, names: Sequence[str], values: Sequence[float]) -> None:
    colors = [plots.ORANGE if name.startswith("LSR") else plots.BLUE for name in names]
    bars = axes.barh(names, values, color=colors)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.margins(x=0.12)
    axes.tick_params(axis="y", length=0)


def _line(case: layer.Case, rows: Sequence[layer.Row], field: str) -> list[console.Cell]:
    return [case.name, *(float(f"{getattr(row, field):.3g}") for row in rows)]


def _growths(rows: Sequence[terms.Growth | terms.Side]) -> list[terms.Growth]:
    return [row for row in rows if isinstance(row, terms.Growth)]


def _cases(rows: Sequence[layer.Row]) -> Iterator[tuple[layer.Case, list[layer.Row]]]:
    for case in dict.fromkeys(layer.Case(*row[:3]) for row in rows):
        yield case, [row for row in rows if row[:3] == case]
