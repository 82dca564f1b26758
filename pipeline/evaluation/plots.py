"""The pictures of the reports: PNG, the same bytes for the same numbers, in colors safe for color-blind readers."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from pipeline.core.artifacts import replacing

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
DOTS_PER_INCH = 150
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#595959"  # the first two from Okabe & Ito's color-blind safe set
CLASSES_WITH_NUMBERS = 12  # above this, numbers of 9 points no longer fit their cells
LONGEST_LABEL = 30  # letters
LINES_WITH_LEGEND = 12
PANELS = 12
EPOCHS_WITH_DOTS = 50


def confusion_matrix(
    path: Path, actual: Sequence[int], predicted: Sequence[int], names: Sequence[str], title: str
) -> None:
    """Draw how often each class (a row) was taken for each (a column); the color is the share of the row.

    Up to 12 classes, each cell says count and share.

    Raises:
        ValueError: if a class number is not an index of `names`.
    """
    counts = _confusion_counts(actual, predicted, len(names))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with_numbers = len(names) <= CLASSES_WITH_NUMBERS
    side = max(2.4, (0.62 if with_numbers else 0.24) * len(names))
    with _picture(path, side + 2.4, side + 1.5) as figure:
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        if with_numbers:
            _write_cells(axes, counts, shares)
        places = range(len(names))
        labels = [name if len(name) <= LONGEST_LABEL else f"{name[: LONGEST_LABEL - 1]}…" for name in names]
        upright = max(map(len, labels)) * 0.09 > side / len(names)
        axes.set_xticks(places, labels, rotation=90 if upright else 0)
        axes.set_yticks(places, labels)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set(xlabel="predicted class", ylabel="actual class")
        figure.colorbar(
            image, ax=axes, label="share of the actual class", format=PercentFormatter(1), shrink=0.8
        ).outline.set_visible(False)
        _entitle(figure, title)


def scatter(
    path: Path, actual: Sequence[float], predicted: Sequence[float], low: float, high: float, title: str
) -> None:
    """Draw predicted over actual numbers and the line where both agree; the axes span `low` to `high` or further."""
    low, high = min(low, *actual, *predicted), max(high, *actual, *predicted)
    margin = 0.03 * (high - low)
    with _picture(path, 5.2, 5.2) as figure:
        axes = figure.subplots()
        axes.axline((low, low), slope=1, color=ORANGE, linewidth=1.5, label="predicted = actual")
        alpha = float(np.clip(16 / np.sqrt(len(actual)), 0.06, 0.8))
        axes.scatter(actual, predicted, s=16, color=BLUE, alpha=alpha, linewidths=0)
        axes.set(xlim=(low - margin, high + margin), ylim=(low - margin, high + margin), aspect="equal")
        axes.set(xlabel="actual (unit of the label)", ylabel="predicted (unit of the label)")
        axes.grid(color="#E5E5E5", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.legend(loc="upper left")
        _entitle(figure, title)


def separation_curves(path: Path, curves: Mapping[str, Sequence[float]], chosen: Mapping[str, int], title: str) -> None:
    """Draw each layer's relative error against separation rank 1, 2, ...; dots mark the `chosen` separation ranks.

    Layers are colored from first to last. Up to 12 have a legend; more have a color bar.
    """
    colors = _colors(len(curves))
    width = max(1.0, 1.6 - 0.02 * len(curves))
    with _picture(path, 7.2, 4.2) as figure:
        axes = figure.subplots()
        labels = distinct_parts(list(curves))
        for label, (name, values), color in zip(labels, curves.items(), colors, strict=True):
            marked = [chosen[name] - 1] if chosen[name] <= len(values) else []
            ranks = range(1, len(values) + 1)
            axes.plot(ranks, values, "-o", color=color, linewidth=width, markersize=4, markevery=marked, label=label)
        if len(set(chosen.values())) == 1:
            _mark(axes, next(iter(chosen.values())))
        axes.set(
            xlabel="separation rank (number of Kronecker terms)", ylabel="relative error (ratio of Frobenius norms)"
        )
        longest = max(*chosen.values(), *(len(values) for values in curves.values()))
        axes.set(xlim=(0.5, longest + 0.5), ylim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="#E5E5E5", linewidth=0.6)
        if len(curves) <= LINES_WITH_LEGEND:
            figure.legend(loc="outside right upper", title="layer", alignment="left")
        else:
            _layer_bar(figure, axes, len(curves))
        _entitle(figure, title)


def training_curves(
    path: Path, curves: Mapping[str, Sequence[tuple[int, float]]], best: int, metric: str, title: str
) -> None:
    """Draw loss and validation score over the optimizer steps; a line marks the step of the `best` checkpoint.

    `curves` has `loss`, `validation_loss` and `validation_score` as (step, value).
    """
    marker = "-o" if len(curves["validation_loss"]) <= EPOCHS_WITH_DOTS else "-"
    with _picture(path, 7.2, 5.2) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True)
        upper.plot(*_points(curves["loss"]), color=GREY, linewidth=1, label="train")
        upper.plot(*_points(curves["validation_loss"]), marker, color=ORANGE, markersize=4, label="validation")
        lower.plot(*_points(curves["validation_score"]), marker, color=BLUE, markersize=4)
        upper.set(ylabel="loss")
        lower.set(xlabel="optimizer step", ylabel=f"validation {metric}", xlim=(0, None))
        lower.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in (upper, lower):
            axes.axvline(best, color=GREY, linewidth=0.8, linestyle="--", label="best checkpoint")
            axes.grid(color="#E5E5E5", linewidth=0.6)
        figure.legend(*upper.get_legend_handles_labels(), loc="outside lower center", ncols=3)
        _entitle(figure, title)


class Frames(NamedTuple):
    """How much frames of a layer or kind hold: shares of the energy."""

    curves: Mapping[str, Sequence[float]]  # by what they show, in frames of rank 1, 2, ...
    rank: int
    by_terms: Mapping[int, float]  # at this rank, by the number of Kronecker terms


def captured_energies(path: Path, frames: Mapping[str, Frames], title: str) -> None:
    """Draw a panel a layer or kind: a line for each curve over the rank of frames, and a dot at the chosen rank.

    Where frames are Kronecker sums, a dotted line over their number of terms. Up to 12 panels, the first ones.
    """
    shown = dict(list(frames.items())[:PANELS])
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    with _picture(path, 3.2 * columns + 1.2, 2.5 * rows + 0.9) as figure:
        panels = list(figure.subplots(rows, columns, squeeze=False, sharey=True).flat)
        for axes, one, label in zip(panels, shown.values(), distinct_parts(list(shown)), strict=False):
            _draw_energies(axes, one)
            axes.set_title(label, fontsize="medium")
        for axes in panels[len(shown) :]:
            axes.set_visible(False)
        for axes in panels[: len(shown)][-columns:]:
            axes.set_xlabel("rank of the frames")
        figure.supylabel("share of the energy", fontsize="medium")
        labels = panels[0].get_legend_handles_labels()
        figure.legend(*labels, loc="outside lower center", ncols=3 if columns > 1 else 2)
        _entitle(figure, title)


def _points(curve: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in curve], [value for _, value in curve]


def _draw_energies(axes: Axes, one: Frames) -> None:
    for name, values in one.curves.items():
        color = BLUE if name.startswith("weight") else ORANGE
        style = "--" if name.endswith("shared frames") else "-"
        ranks = range(1, len(values) + 1)
        axes.plot(ranks, values, "o", linestyle=style, color=color, markersize=4, markevery=[one.rank - 1], label=name)
    if one.by_terms:
        axes.plot(
            list(one.by_terms), list(one.by_terms.values()), ":", color=GREY, label="at this rank, by Kronecker terms"
        )
    axes.axvline(one.rank, color=GREY, linewidth=0.8, label="rank of this adapter")
    axes.set(xlim=(0.5, None), ylim=(0, 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(color="#E5E5E5", linewidth=0.6)


def distinct_parts(names: Sequence[str]) -> list[str]:
    """Leave out the dotted parts that all names share: `layer.0.attention.query` becomes `0.query`."""
    parts = [name.split(".") for name in names]
    if len(parts) == 1:
        return [".".join(parts[0][-2:])]
    if len({len(name) for name in parts}) > 1:
        shared = len(list(takewhile(lambda words: len(set(words)) == 1, zip(*parts, strict=False))))
        return [".".join(name[shared:]) for name in parts]
    varying = [place for place, words in enumerate(zip(*parts, strict=True)) if len(set(words)) > 1]
    return [".".join(name[place] for place in varying) for name in parts]


def note(path: Path, text: str) -> None:
    """Write a picture that holds one line, where there is nothing to draw."""
    with _picture(path, 6.0, 1.0) as figure:
        figure.text(0.5, 0.5, text, ha="center", va="center")


@contextmanager
def _picture(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yield a figure of so many inches; write it when all went well. A matplotlibrc of the user's has no say."""
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        with replacing(path) as temporary:
            # Without its name and version, the file is the same under the next matplotlib that draws the same.
            figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})


def _entitle(figure: Figure, title: str) -> None:
    letters = int(figure.get_figwidth() * 11.5)  # of 11 points, as wide as the figure
    figure.suptitle(textwrap.fill(title, letters), x=0.01, ha="left", fontsize=11)


def _confusion_counts(actual: Sequence[int], predicted: Sequence[int], classes: int) -> NDArray[np.int64]:
    pairs = np.array([actual, predicted], dtype=np.int64)
    if pairs.size and not 0 <= pairs.min() <= pairs.max() < classes:
        raise ValueError(f"class numbers must be in [0, {classes - 1}], got {pairs.min()} to {pairs.max()}")
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, tuple(pairs), 1)
    return counts


def _write_cells(axes: Axes, counts: NDArray[np.int64], shares: NDArray[np.float64]) -> None:
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column]
        axes.text(column, row, f"{count:,}\n{share:.0%}", ha="center", va="center", color="w" if share > 0.5 else "k")


def _colors(number: int) -> NDArray[np.float64]:  # (number, 4)
    return colormaps["viridis"](np.linspace(0, 0.9, number))  # its last tenth is too pale on white


def _mark(axes: Axes, chosen: int) -> None:
    axes.axvline(chosen, color=ORANGE, linewidth=1.5, linestyle="--")
    axes.annotate(
        f"chosen: {chosen}", (chosen, 1), xycoords=("data", "axes fraction"), xytext=(0, 2),
        textcoords="offset points", ha="center", va="bottom", color=ORANGE,
    )  # fmt: skip


def _layer_bar(figure: Figure, axes: Axes, layers: int) -> None:
    scale = ScalarMappable(Normalize(1, layers), ListedColormap(_colors(256)))
    figure.colorbar(scale, ax=axes, label="layer, from first to last", ticks=MaxNLocator(integer=True))
