"""The charts in Vega-Lite, for the page and the PNG files.

On the page, a chart is filtered by the signals `task` and `shown`, the methods that are not filtered out. The PNG files
have a panel per task.
"""

from collections.abc import Iterator, Sequence
from math import ceil, floor, log10
from statistics import fmean, median
from typing import Any

import altair as alt
import pandas as pd

from pipeline.compare import tables
from pipeline.compare.comparison import Comparison
from pipeline.compare.rows import Row
from pipeline.compare.tables import Flat
from pipeline.compare.words import probable

VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])  # the version that altair targets
# Okabe & Ito's color-blind safe palette without yellow, which is too pale for lines; with seven shapes, 49 pairs.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right"]
BLUE, ORANGE, GREY = COLORS[0], COLORS[1], "#595959"
GRID = "#e6e8eb"
FONT = "DejaVu Sans"
OF_TASK, OF_SHOWN = "datum.task === task", "indexof(shown, datum.method) >= 0"
FAR_BELOW, LEAST_SPAN = 3.0, 2.0  # times the lead of the best over the median; percentage points
LONGEST_NAME = 150  # pixels
HALO: dict[str, Any] = {"stroke": "white", "strokeWidth": 3, "strokeOpacity": 0.85}
APART = 0.045  # of the range of scores: closer labels would overlap
SIGNIFICANT = 0.05
FEW_POWERS = 3  # of ten on an axis: up to this many, there are ticks between them
AROUND = 1.6  # factor by which a logarithmic axis extends beyond the values
MOST_EPOCHS = 6  # ticks


def pareto(found: Comparison, size: str, title: str) -> alt.LayerChart:
    """Return scores with intervals over a size, on a logarithmic axis, and the Pareto front.

    Methods without such a size, such as the head alone, are dashed lines; those far below are named but not drawn.
    """
    data = pd.DataFrame(_pareto(found, size), columns=list(PARETO))
    base = alt.Chart(data)
    drawn = base.transform_filter("!datum.below && datum.size > 0")
    sizes = [size for size in data["size"] if size > 0]
    x = _logarithmic(alt.X("size:Q", title=title), sizes, "~s")
    y = alt.Y("score:Q", title="score, %").scale(zero=False)
    tip = [alt.Tooltip("method:N"), *_numbers("score", "low", "high"), alt.Tooltip("size:Q", title=title, format=",")]
    tip += [alt.Tooltip("seeds:Q"), alt.Tooltip("status:N")]
    bars = drawn.mark_rule(opacity=0.55, strokeWidth=1.2).encode(
        x=x, y=alt.Y("low:Q", title="score, %"), y2="high:Q", color=_color(data)
    )
    line = drawn.transform_filter("datum.front").mark_line(
        interpolate="step-after", strokeDash=[4, 3], color=GREY, strokeWidth=1
    ).encode(x=x, y=y)  # fmt: skip
    points = drawn.mark_point(filled=True, size=70, opacity=0.95).encode(
        x=x, y=y, color=_color(data), shape=_shape(data), tooltip=tip
    )
    # No point is above the front, so names go there, toward the middle of the plot.
    named = [
        drawn.transform_filter(f"datum.label === '{side}'")
        .mark_text(align=side, dx=7 if side == "left" else -7, dy=-7, fontSize=10, limit=LONGEST_NAME, **halo)
        .encode(x=x, y=y, text="method:N")
        for side in ("left", "right")
        for halo in (HALO, {})
    ]
    none = base.transform_filter("!datum.below && !(datum.size > 0)")
    rules = none.mark_rule(strokeDash=[2, 3], color=GREY).encode(y=y, tooltip=tip)
    names = none.mark_text(align="left", baseline="bottom", dy=-3, dx=4, fontSize=10, color=GREY).encode(
        x=alt.value(0), y=y, text="method:N"
    )
    return _layered(bars, line, points, *named, rules, names, _outside(base))


def _outside(base: alt.Chart) -> alt.Chart:
    """Return a line at the bottom that names the methods that are not drawn because they are far below."""
    return (
        base.transform_filter("datum.below")
        .transform_aggregate(names="values(said)", groupby=["task"])
        .transform_calculate(said="'below: ' + join(pluck(datum.names, 'said'), ', ')")
        .mark_text(align="right", baseline="bottom", fontSize=10, color=GREY, dx=-4, dy=-4, limit=280)
        .encode(x=alt.value("width"), y=alt.value("height"), text="said:N")
    )


PARETO = (
    "task", "method", "adapter", "size", "score", "low", "high", "seeds", "status", "below", "said", "front", "label",
)  # fmt: skip


def _pareto(found: Comparison, size: str) -> list[Flat]:
    return [row for rows in found.rows.values() for row in _places(list(rows.values()), size)]


def _places(rows: Sequence[Row], size: str) -> Iterator[Flat]:
    """Yield the rows to draw for a task, smallest method first."""
    limit = _limit(rows)
    drawn = [row.score for row in rows if row.score.mean is not None and row.score.mean >= limit]
    ends = [end for score in drawn for end in (score.mean, score.low, score.high) if end is not None]
    sizes = [log10(number) for row in rows if (number := getattr(row.size, size)) and row.scores]
    best, named = float("-inf"), float("-inf")
    for row in sorted(rows, key=lambda one: (getattr(one.size, size) or 0, -(one.score.mean or 0), one.method)):
        score, number = row.score, getattr(row.size, size)
        if score.mean is None:
            continue
        front = bool(number) and score.mean > max(best, limit)
        with_name = front and score.mean >= named + APART * (max(ends) - min(ends))
        yield {
            "task": row.task,
            "method": row.method,
            "adapter": row.adapter,
            "size": number,
            **dict(zip(("score", "low", "high"), score, strict=False)),
            "seeds": score.seeds,
            "status": row.status,
            "below": score.mean < limit,
            "said": f"{row.method} {score.mean:.1f}",
            "front": front,
            "label": ("left" if log10(number) <= fmean((min(sizes), max(sizes))) else "right") if with_name else "",
        }
        best = max(best, score.mean) if front else best
        named = score.mean if with_name else named


def _limit(rows: Sequence[Row]) -> float:
    """Return the score below which a method is not drawn, because it would leave no room for the others."""
    means = [row.score.mean for row in rows if row.score.mean is not None]
    if not means:
        return float("-inf")
    return median(means) - max(LEAST_SPAN, FAR_BELOW * (max(means) - median(means)))


def differences(found: Comparison) -> alt.LayerChart:
    """Return the lead of each method over the baseline, with thick intervals over seeds and thin ones over examples."""
    limits = {task: _limit(list(rows.values())) for task, rows in found.rows.items()}
    kept = [row for row in tables.results(found) if row["difference"] is not None]
    data = pd.DataFrame([{name: row[name] for name in DIFFERENCES} for row in kept], columns=list(DIFFERENCES))
    data["differs"] = [_differs(p) for p in data["p_holm"]]
    data["below"] = [row["score"] < limits[row["task"]] for row in kept]
    data["said"] = [f"{row['method']} {row['difference']:+.1f}" for row in kept]
    whole = alt.Chart(data)
    base = whole.transform_filter("!datum.below")
    order = alt.EncodingSortField("difference", order="descending")
    y = alt.Y("method:N", title=None, sort=order).axis(ticks=False, domain=False)
    x = alt.X("difference:Q", title=f"percentage points ahead of {found.baseline}")
    color = alt.Color("differs:N", title=None).scale(domain=DIFFERS, range=[BLUE, GREY, "#AAAAAA"])
    tip = [alt.Tooltip("method:N"), *_numbers("difference", "difference_low", "difference_high")]
    tip += [alt.Tooltip(f"{name}:Q", format=".4f") for name in ("p", "p_holm")]
    zero = base.mark_rule(color="#999999").encode(x=alt.datum(0))
    thin = base.mark_rule(strokeWidth=1.2, opacity=0.7).encode(
        x=alt.X("difference_examples_low:Q"), x2="difference_examples_high:Q", y=y, color=color
    )
    thick = base.mark_rule(strokeWidth=4, opacity=0.35).encode(
        x="difference_low:Q", x2="difference_high:Q", y=y, color=color
    )
    points = base.mark_point(filled=True, size=55, opacity=1).encode(x=x, y=y, color=color, tooltip=tip)
    return _layered(zero, thick, thin, points, _outside(whole))


DIFFERENCES = (
    "task", "method", "difference", "difference_low", "difference_high",
    "difference_examples_low", "difference_examples_high", "p", "p_holm",
)  # fmt: skip
DIFFERS = ["differs (Holm's p < 0.05)", "does not", "not tested"]


def _differs(p: float | None) -> str:
    return DIFFERS[2] if p is None or p != p else DIFFERS[0] if p < SIGNIFICANT else DIFFERS[1]


def ranks(found: Comparison) -> alt.LayerChart | None:
    """Return the mean ranks over tasks, plus and minus half of the critical difference; None without ranks."""
    if found.ranking is None:
        return None
    data = pd.DataFrame(tables.ranks(found))
    base = alt.Chart(data)
    y = alt.Y("method:N", title=None, sort=list(data["method"])).axis(ticks=False, domain=False)
    x = alt.X("rank:Q", title="mean rank, 1 is best").scale(zero=False)
    tip = [alt.Tooltip("method:N"), *_numbers("rank", "low", "high")]
    bars = base.mark_rule(strokeWidth=4, opacity=0.3, color=BLUE).encode(x=alt.X("low:Q"), x2="high:Q", y=y)
    return _layered(bars, base.mark_point(filled=True, size=60, opacity=1, color=BLUE).encode(x=x, y=y, tooltip=tip))


def about_ranks(found: Comparison) -> str:
    """Return the basis of the ranks in one line: tasks, critical difference and test."""
    if found.ranking is None:
        return "too few methods or tasks finished"
    critical, p = found.ranking.critical_difference, probable(found.ranking.p)
    tested = f"Friedman's test p {p if p.startswith('<') else f'= {p}'}"
    return f"{found.ranking.tasks} tasks, critical difference {critical:.2f}, {tested}"


def rates(found: Comparison) -> alt.LayerChart:
    """Return validation scores by learning rate; crosses mark trainings that did not finish."""
    data = pd.DataFrame(tables.rates(found))
    data["rate_of_head"] = [f"{value:g}" for value in data["head_rate"]]
    base = alt.Chart(data)
    x = _logarithmic(alt.X("rate:Q", title="learning rate"), list(data["rate"]), "~e")
    tip = [alt.Tooltip("method:N"), alt.Tooltip("rate:Q"), alt.Tooltip("head_rate:Q"), *_numbers("validation", "score")]
    tip += [alt.Tooltip("status:N"), alt.Tooltip("reason:N")]
    done = base.transform_filter("datum.status === 'finished'")
    y = alt.Y("validation:Q", title="validation score, %").scale(zero=False)
    line = done.mark_line(color=BLUE, strokeWidth=1.5).encode(x=x, y=y, detail="rate_of_head:N")
    dots = done.mark_point(filled=True, opacity=1).encode(
        x=x, y=y, tooltip=tip, size=alt.condition("datum.chosen", alt.value(110), alt.value(30)),
        color=alt.condition("datum.chosen", alt.value(ORANGE), alt.value(BLUE)),
    )  # fmt: skip
    lost = base.transform_filter("datum.status !== 'finished'").mark_point(
        shape="cross", angle=45, filled=True, color="#000000", size=60
    )
    return _layered(line, dots, lost.encode(x=x, y=alt.value(PANEL["height"] - 6), tooltip=tip))


def curves(found: Comparison) -> alt.LayerChart:
    """Return scores by epoch, on the test split with an interval over seeds, and on validation."""
    data = pd.DataFrame(tables.curves(found), columns=list(CURVES))
    base = alt.Chart(data)
    last = int(data["epoch"].max()) if len(data) else 1
    x = alt.X("epoch:Q", title="epoch").axis(format="d", values=_epochs(last)).scale(domain=(0.8, max(last, 2) + 0.2))
    y = alt.Y("score:Q", title="score, %").scale(zero=False)
    tip = [
        alt.Tooltip("method:N"),
        alt.Tooltip("epoch:Q"),
        *_numbers("score", "score_low", "score_high", "validation", "loss"),
    ]
    tip += [alt.Tooltip("selected_by:Q", title="seeds that select it"), alt.Tooltip("seeds:Q")]
    band = base.mark_area(opacity=0.18, color=ORANGE).encode(x=x, y=alt.Y("score_low:Q"), y2="score_high:Q")
    test = base.mark_line(color=ORANGE, strokeWidth=1.5).encode(x=x, y=y)
    held = base.mark_line(color=BLUE, strokeWidth=1.5, strokeDash=[4, 2]).encode(x=x, y="validation:Q")
    dots = base.mark_point(filled=True, opacity=1, color=ORANGE).encode(
        x=x, y=y, tooltip=tip, size=alt.Size("selected_by:Q", legend=None).scale(range=[12, 140])
    )
    return _layered(band, held, test, dots)


CURVES = ("task", "method", "epoch", "loss", "validation", "score", "score_low", "score_high", "selected_by", "seeds")
PANEL = {"width": 190, "height": 130}


def _logarithmic(x: alt.X, values: Sequence[float], form: str) -> alt.X:
    """Return an axis from below the smallest value to above the largest, with a tick at each power of ten.

    If it spans few powers, there are ticks between them. It stays fixed when methods are filtered out.
    """
    if not values:
        return x
    ends = min(values) / AROUND, max(values) * AROUND
    low, high = floor(log10(ends[0])), ceil(log10(ends[1]))
    digits = (1, 2, 5) if high - low <= FEW_POWERS else (1,)
    ticks = [float(f"{digit}e{power}") for power in range(low, high + 1) for digit in digits]
    return x.scale(type="log", domain=ends).axis(
        format=form, values=[tick for tick in ticks if ends[0] <= tick <= ends[1]], labelOverlap="greedy"
    )


def _epochs(last: int) -> list[int]:
    step = -(-last // MOST_EPOCHS)
    return [*range(1, last + 1, step)]


def _layered(*layers: alt.Chart) -> alt.LayerChart:
    chart = alt.layer(*layers)
    assert isinstance(chart, alt.LayerChart), "layers of plain charts are no facets"
    return chart


def _color(data: pd.DataFrame) -> alt.Color:
    words = sorted(set(data["adapter"]))
    colors = [COLORS[place % len(COLORS)] for place in range(len(words))]
    return alt.Color("adapter:N", title="adapter").scale(domain=words, range=colors)


def _shape(data: pd.DataFrame) -> alt.Shape:
    words = sorted(set(data["adapter"]))
    # Each time the colors are used up, the shapes are shifted by one.
    shapes = [SHAPES[(place + place // len(COLORS)) % len(SHAPES)] for place in range(len(words))]
    return alt.Shape("adapter:N", title="adapter").scale(domain=words, range=shapes)


def _numbers(*names: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{name}:Q", format=".2f") for name in names]
